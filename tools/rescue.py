#!/usr/bin/env python3
"""Restore any generation of a castore store from the store and an identity file, without castore.

Why: a backup should not depend on the program that made it. This file is written from castore's
FORMAT.md alone ("section N" below means that page), needs Python 3.11 and the packages pynacl,
zstandard and blake3, and never writes to the store.

    rescue.py STORE --identity FILE                        lists the generations
    rescue.py STORE --identity FILE SERVICE NUMBER DEST    restores one into DEST, new or empty

Each dump becomes the file DEST/PART, each tree the directory DEST/PART. Without root, owners,
devices, privileged extended attributes and set-id bits of other people's files are left out.

All that is read is verified. What is damaged is named on stderr, with the path it belongs to, and
the work goes on; in a damaged file, zeros stand where bytes are lost. Exit codes: 0 all is well,
2 wrong usage, 5 something is damaged or was not restored, 6 no such generation, 7 wrong identity.
"""

import argparse
import base64
import contextlib
import getpass
import os
import re
import resource
import struct
import sys
import time
from collections import namedtuple

import zstandard
from blake3 import blake3
from nacl import bindings, pwhash
from nacl.exceptions import CryptoError

ROOT = os.geteuid() == 0
CHUNK, SPLICE, LOST = 0, 2, -1  # kinds of references; LOST, where a node is damaged, is ours
DEVICES, DIRECTORY, FILE, LINK = (2, 6), 4, 8, 10  # types of entries; a fifo is 1, a socket 12
RECORD = struct.Struct("<32sIIIHBB")  # an entry of a footer, section 3
PLACE = struct.Struct("<IQIIIHBB")  # position of the pack, offset, then RECORD without its id
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
FIELDS = "name type mode uid gid mtime size content target device link xattrs extents"
Entry = namedtuple("Entry", FIELDS, defaults=(b"", 0, None, (), None))  # noqa: PYI024
LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
problems = []


def problem(where, why):
    """Tell what is damaged or not restored; paths of any bytes are shown safely."""
    problems.append(f"DAMAGE: {os.fsdecode(where)!r}: {why}")
    print(problems[-1], file=sys.stderr)


@contextlib.contextmanager
def watched(where):
    """Report whatever goes wrong inside, then go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - damage may show in any way, and must stop nothing
        problem(where, f"{type(error).__name__}: {error}")


def need(condition, why):
    if not condition:
        raise ValueError(why)


def stop(code, why):
    print(f"rescue: {why}", file=sys.stderr)
    sys.exit(code)


def decode(data, at=0):
    """Decode the MessagePack value at a position; return it and where it ends."""
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:  # a small integer
        return first - (0x100 if first >= 0xE0 else 0), at
    if first in {0xC0, 0xC2, 0xC3}:
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if 0xCC <= first <= 0xD3:  # an integer of 1, 2, 4 or 8 bytes, unsigned or signed
        end = at + (1 << (first & 3))
        return int.from_bytes(data[at:end], "big", signed=first >= 0xD0), end
    if first < 0xC0:  # a short map, array or string
        kind = dict if first < 0x90 else list if first < 0xA0 else str
        count = first & (31 if kind is str else 15)
    else:
        kind = bytes if first < 0xC7 else str if first < 0xDC else list if first < 0xDE else dict
        width = LENGTHS[first]
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
    if kind in {bytes, str}:
        need(at + count <= len(data), "a value is cut short")
        return kind(data[at : at + count], *["utf-8"] * (kind is str)), at + count
    items = []
    for _ in range(count * (2 if kind is dict else 1)):
        value, at = decode(data, at)
        items.append(value)
    return (items if kind is list else dict(zip(items[::2], items[1::2], strict=True))), at


def derive(context, material):
    return blake3(material, derive_key_context=context).digest()


def unbox(box, key, associated=b""):
    """Open a nonce and what XChaCha20-Poly1305 sealed with it."""
    return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(box[24:], associated, box[:24], key)


def read_identity(path):
    """Return the secret key in an identity file, section 1."""
    with open(path, encoding="utf-8") as file:
        text = "".join(line.strip() for line in file if not line.startswith("#"))
    match = re.fullmatch(r"(castore-(identity|locked)-)([a-z2-7]+)", text)
    raw = base64.b32decode(match[3].upper() + "=" * (-len(match[3]) % 8)) if match else b""
    if not match or blake3(match[1].encode() + raw[:-4]).digest()[:4] != raw[-4:]:
        stop(7, f"{path} holds no identity, or one that is mistyped: its check does not match")
    if match[2] == "identity":
        return raw[:-4]
    salt, operations, memory = struct.unpack("<16sII", raw[:24])
    ask = getpass.getpass if sys.stdin.isatty() else lambda _: sys.stdin.readline().rstrip("\r\n")
    typed = ask("Passphrase of the identity: ").encode()
    try:
        return unbox(raw[24:-4], pwhash.argon2id.kdf(32, typed, salt, operations, memory * 1024))
    except CryptoError:
        return stop(7, f"wrong passphrase for the identity in {path}")


class Store:
    """Opens the objects, records and lists of a store, and verifies all of them."""

    def __init__(self, path, secret):
        self.path, self.secret = path, secret
        self.recipient = bindings.crypto_scalarmult_base(secret)
        self.sessions, self.packs, self.index, self.bases = {}, [], {}, {}
        self.cache, self.opening = {}, set()
        try:
            name = self.names("config", r"[1-9][0-9]*")[0]
            data = self.read(name, b"castorec")
        except (OSError, ValueError, IndexError) as error:
            stop(5, f"{path} is no store, or its config is damaged ({error})")
        self.store_id, end = data[16:32], 34 + 96 * int.from_bytes(data[32:34], "little")
        writer = self.unseal((data[at : at + 96] for at in range(34, end, 96)), self.store_id)
        if not writer:
            stop(7, f"wrong identity: no seal in {name} opens with it")
        self.index_key = derive("castore 1 index", writer)
        self.object_key = derive("castore 1 objects", self.index_key)
        self.id_keys = derive("castore 1 chunk id", writer), derive("castore 1 node id", writer)
        with watched(name):  # what is in the box is not needed here
            unbox(data[end:], self.object_key, name.encode() + data[:end])

    def names(self, folder, pattern):
        """Return the names of objects, the highest number first."""
        found = [n for n in os.listdir(f"{self.path}/{folder}") if re.fullmatch(pattern, n)]
        return [f"{folder}/{n}" for n in sorted(found, key=lambda n: (len(n), n), reverse=True)]

    def read(self, name, kind, offset=0, size=-1):
        """Return an object, or a part of it; check its header if the part begins with it."""
        with open(f"{self.path}/{name}", "rb") as file:
            file.seek(offset)
            data = file.read(size)
        need(offset or data[:16] == struct.pack("<8sH6x", kind, 1), "no header of format 1")
        return data

    def unseal(self, seals, ident):
        """Return the secret behind an id in the first seal that opens with the identity."""
        for seal in seals:
            with contextlib.suppress(CryptoError):
                opened = bindings.crypto_box_seal_open(seal, self.recipient, self.secret)
                if opened[:16] == ident and len(opened) == 48:
                    return opened[16:]
        return None

    def generation_name(self, service, number):
        tag = blake3(service.encode(), key=derive("castore 1 tag", self.index_key)).digest()
        return f"generations/{tag[:8].hex()}-{number:010d}"

    def open_object(self, name, kind, size):
        """Return the map in the box of a generation or session, and what is before the box."""
        data = self.read(name, kind)
        associated = name.encode() + self.store_id + data[:size]
        return decode(unbox(data[size:], self.object_key, associated))[0], data[:size]

    def generation(self, name):
        found, _ = self.open_object(name, b"castoreg", 16)
        need(self.generation_name(found["service"], found["number"]) == name, "has a wrong name")
        return found

    def session(self, ident):
        """Return cipher, data key and node key of a session, section 2."""
        if ident not in self.sessions:
            names = self.names("sessions", ident.hex() + r"\.[0-9]+")
            need(names, f"the session {ident.hex()} is missing")
            found, head = self.open_object(names[0], b"castores", 32)
            mine = [seal for recipient, seal in found["seals"] if recipient == self.recipient]
            key = self.unseal(mine, head[16:])
            need(key and head[16:] == ident, f"{names[0]} is not sealed to this identity")
            need(found["cipher"] in {1, 2}, f"{names[0]} names a cipher that format 1 has not")
            node_key = derive("castore 1 nodes", self.index_key + ident)
            self.sessions[ident] = found["cipher"], key, node_key
        return self.sessions[ident]

    def load_footer(self, name):
        """Note where each record of a pack is, section 3."""
        associated = self.store_id + self.read(name, b"castorep", 0, 32)
        end = os.path.getsize(f"{self.path}/{name}") - 48
        trailer = unbox(self.read(name, b"", end), self.object_key, b"trailer" + associated)
        size, count = struct.unpack("<II", trailer)
        box = self.read(name, b"", end - size, size)
        footer = unbox(box, self.object_key, b"footer" + associated)
        table = 2 + 16 * int.from_bytes(footer[:2], "little")
        base, offset, pack = table + 48 * count, 32, len(self.packs)
        self.packs.append((name, [footer[at : at + 16] for at in range(2, table, 16)]))
        for ident, *fields in RECORD.iter_unpack(footer[table:base]):
            self.index[ident] = self.index.get(ident, b"") + PLACE.pack(pack, offset, *fields)
            if fields[-1] == 2:
                self.bases[pack, offset] = footer[base : base + 32]
                base += 32
            offset += fields[0]
        need(base == len(footer) and offset + size <= end, "its footer's lengths do not fit")

    def record(self, kind, ident):
        """Return the plaintext of a chunk (0) or node (1) from a copy that verifies, or None."""
        if ident in self.cache:
            return self.cache[ident]
        what = f"{('chunk', 'node')[kind]} {ident.hex()}"
        if ident not in self.index or ident in self.opening:
            problem(what, "is its own base" if ident in self.opening else "is in no readable pack")
            return None
        self.opening.add(ident)
        copies = PLACE.iter_unpack(self.index[ident])
        for place in sorted(copies, key=lambda place: place[-1]):  # those without a base first
            if ident not in self.cache:
                with watched(f"{what} in {self.packs[place[0]][0]} at byte {place[1]}"):
                    self.cache[ident] = self.open_record(kind, ident, *place)
        self.opening.remove(ident)
        plain = self.cache.get(ident)
        if len(self.cache) > 16:
            del self.cache[next(iter(self.cache))]
        return plain

    def open_record(self, wanted, ident, pack, offset, length, size, counter, table, kind, codec):
        name, sessions = self.packs[pack]
        cipher, *keys = self.session(sessions[table])
        base = self.bases.get((pack, offset), bytes(32))
        associated = self.store_id + ident + base + struct.pack("<IBBxx", size, kind, codec)
        sealed, nonce = self.read(name, b"", offset, length), counter.to_bytes(32, "little")
        if cipher == 1:
            plain = bindings.crypto_aead_aegis256_decrypt(sealed, associated, nonce, keys[kind])
        else:
            plain = unbox(nonce[:24] + sealed, keys[kind], associated)
        if codec:
            raw = self.record(kind, base) if codec == 2 else b""
            need(raw is not None, f"its base {base.hex()} is lost")
            words = zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            unzip = zstandard.ZstdDecompressor(words if codec == 2 else None)
            plain = unzip.decompress(plain, max_output_size=size)
        need(kind == wanted and codec < 3 and len(plain) == size, "wrong kind, codec or length")
        need(blake3(plain, key=self.id_keys[kind]).digest() == ident, "does not match its id")
        return plain

    def references(self, reference):
        """Yield the references (kind, id, size) of a list, section 4; LOST for a lost node's."""
        todo = [(SPLICE, *reference[1:])]
        while todo:
            kind, ident, size = todo.pop()
            node = self.record(1, ident) if kind == SPLICE else None
            if node is None:
                yield (LOST if kind == SPLICE else kind), ident, size
                continue
            found = [(n >> 56, i, n % (1 << 56)) for i, n in struct.iter_unpack("<32sQ", node)]
            if sum(n for _, _, n in found) != size:
                problem(f"node {ident.hex()}", "its sizes do not add up")
            todo += reversed(found)

    def pieces(self, reference):
        """Yield (size, bytes or None) over a stream."""
        listed = [reference] if reference[0] == CHUNK else self.references(reference)
        for kind, ident, size in listed:
            data = None if kind == LOST else self.record(0, ident)
            if data is not None and len(data) != size:
                problem(f"chunk {ident.hex()}", f"has {len(data)} bytes, its reference says {size}")
                data = None
            yield size, data and memoryview(data)

    def entries(self, reference):
        """Yield the entries of a directory, section 5, but not the owners at their head."""
        buffer, number = b"", 0
        for _, data in self.pieces(reference):
            need(data, "the names in this directory are lost, and all below it")
            buffer, at = buffer + data, 0
            while len(buffer) >= (end := at + 4 + int.from_bytes(buffer[at : at + 4], "little")):
                if number:
                    *fields, extra = decode(buffer[at + 4 : end])[0][:9]
                    yield Entry(*fields, *extra[:5])
                at, number = end, number + 1
            buffer = buffer[at:]
        need(number and not buffer, "the names in this directory are cut short")


class Reader:
    """Takes bytes off a stream, as many as asked for."""

    def __init__(self, pieces):
        self.pieces, self.rest = pieces, (0, None)

    def take(self, wanted):
        while wanted:
            size, data = self.rest if self.rest[0] else next(self.pieces, (wanted, None))
            now = min(size, wanted)
            self.rest, wanted = (size - now, data and data[now:]), wanted - now
            yield now, data and data[:now]


def write(fd, at, pieces, path):
    """Write pieces from an offset on, leaving zeros where some are lost; return the end."""
    for size, data in pieces:
        if not data:
            problem(path, f"{size} bytes from byte {at} on are lost, zeros stand there")
        done = 0 if data else size
        while done < size:
            done += os.pwrite(fd, data[done:], at + done)
        at += size
    return at


class Tree:
    """Restores a tree. Names are bytes, and always used relative to an open directory."""

    def __init__(self, store, top, part):
        self.store, self.top, self.part, self.links = store, top, part, {}

    def fill(self, fd, reference, path):
        """Restore all that a directory's list, section 5, holds into an open directory."""
        refs = list(self.store.references(reference))
        found = [(e.type == DIRECTORY, e.content) for e in self.store.entries(refs[0])]
        streams = 1 + any(content == 1 for _, content in found)
        below = streams + sum(content == 2 and not deeper for deeper, content in found)
        whole = below + sum(content == 2 and deeper for deeper, content in found)
        lost = [n for n, ref in enumerate(refs) if ref[0] == LOST]
        if lost:  # how many references a lost node had follows from the entries
            hole = whole - len(refs) + lost[-1] + 1 - lost[0]
            refs[lost[0] : lost[-1] + 1] = [refs[lost[0]]] * hole
        need(len(refs) == whole, "its entries and its references do not match")
        bundle = Reader(self.store.pieces(refs[1]) if streams == 2 else iter(()))
        contents, directories, deeper = iter(refs[streams:below]), iter(refs[below:]), []
        for entry in self.store.entries(refs[0]):
            name = entry.name or (b"" if path else self.part)
            if entry.type == DIRECTORY:
                deeper.append((entry, name, next(directories) if entry.content == 2 else None))
                continue
            extents = [[0, entry.size]] if entry.extents is None else entry.extents
            size, inner = sum(length for _, length in extents), os.path.join(path, name)
            source = bundle.take(size) if entry.content == 1 else iter(())
            if entry.content == 2:
                stream = next(contents)
                source = self.store.pieces(stream)
                if stream[2] != size and stream[0] != LOST:
                    problem(inner, f"its stream has {stream[2]} bytes instead of {size}")
            with watched(inner):
                self.put(fd, entry, name, inner, Reader(source), extents)
            if entry.content == 1:
                list(source)  # pass over what an entry that failed has left in the bundle
        for entry, name, ref in deeper:
            with watched(os.path.join(path, name)):
                self.put_directory(fd, entry, name, os.path.join(path, name), ref)

    def put_directory(self, fd, entry, name, path, reference):
        check(name)
        os.mkdir(name, 0o700, dir_fd=fd)
        inner = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
        with watched(path):
            if reference:
                self.fill(inner, reference, path)
        os.close(inner)
        self.finish(fd, entry, name, path)

    def put(self, fd, entry, name, path, reader, extents):
        """Restore what is no directory; names that share [device, inode] become hard links."""
        check(name)
        before, link = len(problems), tuple(entry.link or ())
        if link in self.links:
            with contextlib.suppress(OSError):  # without a link, it gets its own copy
                return self.hard_link(self.links[link], fd, name)
        if entry.type == FILE:
            with open(os.open(name, NEW_FILE, 0o600, dir_fd=fd), "wb", buffering=0) as file:
                file.truncate(entry.size)
                for offset, length in extents:
                    write(file.fileno(), offset, reader.take(length), path)
        elif entry.type == LINK:
            os.symlink(entry.target, name, dir_fd=fd)
        elif entry.type in DEVICES and not ROOT:
            return print(f"left out, as only root can make devices: {os.fsdecode(path)!r}")
        else:
            os.mknod(name, entry.type << 12 | 0o600, entry.device, dir_fd=fd)
        self.finish(fd, entry, name, path)
        if link and len(problems) == before:
            self.links[link] = path
        return None

    def hard_link(self, source, fd, name):
        *parents, last = source.split(b"/")
        at = os.dup(self.top)
        for parent in parents:
            at, old = os.open(parent, OPEN_DIRECTORY, dir_fd=at), at
            os.close(old)
        os.link(last, name, src_dir_fd=at, dst_dir_fd=fd, follow_symlinks=False)
        os.close(at)

    def finish(self, fd, entry, name, path):
        """Set owner, extended attributes, mode and, as all others change it, last the time."""
        mode, where = entry.mode, {"dir_fd": fd, "follow_symlinks": False}
        full = b"/proc/self/fd/%d/%s" % (fd, name)
        if ROOT:
            with watched(path):
                os.chown(name, entry.uid, entry.gid, **where)
        elif entry.type != DIRECTORY and entry.uid != os.geteuid():
            mode &= 0o1777
        for key, value in entry.xattrs or ():
            if ROOT or key.startswith((b"user.", b"system.")):
                with watched(path):
                    os.setxattr(full, key, value, follow_symlinks=False)
        if entry.type != LINK:
            with watched(path):
                os.chmod(name, mode, dir_fd=fd)
        with watched(path):
            os.utime(name, ns=(entry.mtime, entry.mtime), **where)


def check(name):
    need(name not in {b"", b".", b".."} and not {0, 47} & {*name}, "refused: a hostile name")


def list_generations(store):
    found = []
    for name in store.names("generations", r"[0-9a-f]{16}-[0-9]{10}"):
        with watched(name):
            found.append(store.generation(name))
    for one in sorted(found, key=lambda one: (one["service"], one["number"])):
        when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(one["time"] // 10**9))
        parts = ", ".join(f"{part['name']} ({part['kind']})" for part in one["parts"])
        print(f"{one['service']} {one['number']}  {when}  revision {one['revision']}  {parts}")


def restore(store, service, number, dest):
    name = store.generation_name(service, number)
    if not os.path.exists(f"{store.path}/{name}"):
        stop(6, f"{store.path} has no generation {number} of {service}")
    os.makedirs(dest, 0o700, exist_ok=True)
    if os.listdir(dest):
        stop(2, f"{dest} is not empty")
    generation, top = {"parts": []}, os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    with watched(name):
        generation = store.generation(name)
        for pack in store.names("packs", r"[0-9a-f]{64}"):
            with watched(pack):
                store.load_footer(pack)
    for part in generation["parts"]:
        print(f"{part['kind']} {part['name']}")
        path, root = part["name"].encode(), part["root"]
        with watched(path):
            check(path)
            if part["kind"] == "tree":
                need(root, "nothing of this tree is in the store")
                Tree(store, top, path).fill(top, root, b"")
            else:
                with open(os.open(path, NEW_FILE, 0o600, dir_fd=top), "wb", buffering=0) as file:
                    pieces = store.pieces(root) if root else ()
                    file.truncate(write(file.fileno(), 0, pieces, path))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--identity", metavar="FILE", required=True)
    parser.add_argument("service", metavar="SERVICE", nargs="?")
    parser.add_argument("number", metavar="NUMBER", nargs="?", type=int)
    parser.add_argument("dest", metavar="DEST", nargs="?")
    options = parser.parse_intermixed_args()
    if options.service and not options.dest:
        parser.error("give SERVICE, NUMBER and DEST, or nothing for a list")
    bindings.sodium_init()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a level of directories holds one open
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    sys.setrecursionlimit(1_000_000)
    store = Store(options.store, read_identity(options.identity))
    if options.service:
        restore(store, options.service, options.number, options.dest)
    else:
        list_generations(store)
    if problems:
        stop(5, f"{len(problems)} problems, named above; all else is whole")


if __name__ == "__main__":
    main()
