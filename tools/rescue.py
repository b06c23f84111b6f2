#!/usr/bin/env python3
"""Restore any generation of a castore store, from the store and an identity file, without castore.

    rescue.py STORE --identity FILE                        lists the generations
    rescue.py STORE --identity FILE SERVICE NUMBER DEST    restores one into DEST, new or empty

Needs pynacl, zstandard, blake3. Verifies all; names damage, and goes on with zeros for lost bytes.
Without root, leaves out what only root sets. Exit codes: 2 usage, 5 damage, 6 no such generation, 7 identity.
"""

import base64
import getpass
import io
import os
import re
import struct
import sys
import time
from collections import namedtuple
from contextlib import contextmanager, suppress
from itertools import pairwise

import zstandard
from blake3 import blake3
from nacl import bindings, exceptions, pwhash

CHUNK, LIST, SPLICE, LOST = 0, 1, 2, -1  # kinds of references; LOST, where a node is damaged, is ours
DIRECTORY, FILE, LINK = 4, 8, 10  # types of entries
FIELDS = "name type mode uid gid mtime size content target device link xattrs extents"
Entry = namedtuple("Entry", FIELDS, defaults=(b"", 0, None, (), None))  # noqa: PYI024
KINDS = ((0xDE, dict, 2), (0xDC, list, 2), (0xD9, str, 1), (0xC4, bytes, 1), (0xA0, str, 0), (0x90, list, 0),
         (0x80, dict, 0))  # of MessagePack: the first byte, the type, the bytes that hold the length, if any
XCHACHA, problems = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt, []


def problem(where, why):
    problems.append(where)
    print(f"DAMAGE: {os.fsdecode(where)!r}: {why}", file=sys.stderr)


@contextmanager
def watched(where):  # reports whatever goes wrong inside, then goes on
    try:
        yield
    except Exception as error:  # noqa: BLE001 - damage may show in any way, and must stop nothing
        problem(where, f"{type(error).__name__}: {error}")


def need(condition, why, code=None):  # or else an error or, with an exit code, the end
    if not condition:
        raise SystemExit(print(f"rescue: {why}", file=sys.stderr) or code) if code else ValueError(why)


def decode(stream):  # the next MessagePack value
    first = stream.read(1)[0]
    if first < 0x80 or first >= 0xE0:  # a small integer
        return first - (0x100 if first >= 0xE0 else 0)
    if first in {0xC0, 0xC2, 0xC3}:
        return {0xC0: None, 0xC2: False, 0xC3: True}[first]
    if 0xCC <= first <= 0xD3:  # an integer of 1, 2, 4 or 8 bytes, unsigned or signed
        return int.from_bytes(stream.read(1 << (first & 3)), "big", signed=first >= 0xD0)
    start, kind, width = next(row for row in KINDS if first >= row[0])
    count = int.from_bytes(stream.read(width << first - start), "big") if width else first - start
    if kind in {bytes, str}:
        return stream.read(count) if kind is bytes else stream.read(count).decode()
    items = [decode(stream) for _ in range(count * (2 if kind is dict else 1))]
    return items if kind is list else dict(zip(items[::2], items[1::2], strict=True))


def derive(purpose, material):
    return blake3(material, derive_key_context=f"castore 1 {purpose}").digest()


def unbox(box, key, associated=b""):
    return XCHACHA(box[24:], associated, box[:24], key)


def read_identity(path):  # the secret key in an identity file, section 1, or as it was typed from paper
    with open(path, encoding="utf-8-sig") as file:
        text = "".join(re.sub(r"[\s-]", "", line) for line in file if not line.startswith("#")).lower()
    match = re.fullmatch(r"castore(identity|locked)([a-z2-7]{58}|[a-z2-7]{160})", text)
    raw = base64.b32decode(match[2].upper() + "=" * (-len(match[2]) % 8)) if match else b""
    right = match and blake3(f"castore-{match[1]}-".encode() + raw[:-4]).digest()[:4] == raw[-4:]
    need(right, f"{path} holds no identity, or one that is mistyped", 7)
    if len(raw) == 36:
        return raw[:-4]
    salt, operations, memory = struct.unpack("<16sII", raw[:24])
    ask = getpass.getpass if sys.stdin.isatty() else lambda _: sys.stdin.readline().rstrip("\r\n")
    key = pwhash.argon2id.kdf(32, ask("Passphrase: ").encode(), salt, operations, memory * 1024)
    with suppress(exceptions.CryptoError):
        return unbox(raw[24:-4], key)
    return need(None, f"wrong passphrase for the identity in {path}", 7)


def unsign(signed, about, signers):  # the record in an envelope, section 1
    need(signed[:32] in signers, "is signed by nobody whom the configuration names")
    digest = derive("signed", struct.pack("<I", len(about)) + about + signed[96:])
    bindings.crypto_sign_open(signed[32:96] + digest, signed[:32])
    return signed[96:]


class Writer:  # the keys that a writer secret gives, section 1
    def __init__(self, secret, signers=()):
        self.signers = signers  # whose signatures are accepted in what it opens
        self.index_key, *self.id_keys = [derive(name, secret) for name in ("index", "chunk id", "node id")]
        self.object_key, self.tag_key = derive("objects", self.index_key), derive("tag", self.index_key)


class Store:  # opens and verifies what a store holds, and restores from it
    def __init__(self, path, secret):
        self.path, self.sessions, self.index, self.cache = path, {}, {}, {}
        self.keys = bindings.crypto_scalarmult_base(secret), secret
        own, found = bindings.crypto_sign_seed_keypair(derive("admin", secret))[0], []
        for name in self.names("config", r"[1-9][0-9]{0,17}(\.[0-9a-f]{32})?"):
            with suppress(Exception):  # anybody may have added one that does not open
                found.append(self.open_config(name.split(".")[0], self.read(name)))
        need(found, f"{path} has no config/ that opens: a wrong identity, or damage", 7)
        signer, _, writer, config, self.store_id = max(found, key=lambda one: (one[0] == own, one[1]))
        if signer != own:  # an admin key, section 1
            text = base64.b32encode(signer + blake3(b"castore-admin-" + signer).digest(4)).decode().lower()
            print("rescue: the configuration is signed by castore-admin-" + text.rstrip("="), file=sys.stderr)
        ended = {one[0] for one in config["writers"] if one[5]} | {*config["previous_admins"]}
        signers = {one[0] for one in (*config["admins"], *config["writers"])} - ended
        self.writers, self.listed = [Writer(writer, signers)], None  # the present key, then former ones
        if config["previous_secrets"]:
            name = f"rotations/{config['rotation']}"
            with watched(name):  # should it be lost, whatever a former key opens is taken
                raws = map(self.read, self.names("rotations", rf"{config['rotation']}(\.[0-9a-f]{{32}})?"))
                raw = next(raw for raw in raws if blake3(raw).digest() == config["rotation_hash"])
                plain = unbox(raw[16:], self.writers[0].object_key, name.encode() + self.store_id + raw[:16])
                listed = decode(io.BytesIO(plain))
                self.listed = {f"packs/{one.hex()}": one for one in re.findall(b"(?s).{32}", listed["packs"])}
                self.listed |= listed["objects"]
            self.writers += [Writer(one, signers | ended) for one in reversed(config["previous_secrets"])]
        for name in self.names("sessions", r"[0-9a-f]{32}\.[0-9]+"):
            with watched(name):
                barred = () if name.endswith(".0") else config["writers"]  # only admins seal again
                (found, writer), ident = self.open_object(name, 32, barred), bytes.fromhex(name[9:41])
                key = found.get("node_key") or derive("nodes", writer.index_key + ident)
                self.sessions[ident] = found["cipher"], self.unseal([s for _, s in found["sealed_keys"]]), key

    def names(self, folder, pattern):  # the highest number last
        found = [name for name in os.listdir(f"{self.path}/{folder}") if re.fullmatch(pattern, name)]
        return [f"{folder}/{name}" for name in sorted(found, key=lambda name: (len(name), name))]

    def read(self, name, offset=0, size=-1):
        with open(f"{self.path}/{name}", "rb") as file:
            file.seek(offset)
            return file.read(size)

    def open_config(self, name, data):  # section 2: who signed it, its number, the writer secret, the map
        need(data[:16] == struct.pack("<8sH6x", b"castorec", 1), f"{name} is not of format 1")
        end = 34 + 96 * int.from_bytes(data[32:34], "little")
        about, writer = name.encode() + data[:end], self.unseal(re.findall(b"(?s).{96}", data[34:end]))
        signed = unbox(data[end:], Writer(writer).object_key, about)
        config = decode(io.BytesIO(unsign(signed, about, signed[:32])))
        return signed[:32], int(name[7:]), writer, config, data[16:32]

    def unseal(self, seals):  # the secret in the first seal that is for this identity
        for seal in seals:
            with suppress(exceptions.CryptoError):
                return bindings.crypto_box_seal_open(seal, *self.keys)[16:]
        return None

    def open(self, name, box, associated, digest):  # the plaintext, and the writer key: section 1
        for writer in self.writers:
            with suppress(exceptions.CryptoError):
                plain = unbox(box, writer.object_key, associated)
                present = writer is self.writers[0] or self.listed is None
                need(present or self.listed.get(name) == digest(), "is under a former key, and not listed")
                return plain, writer
        return need(None, "does not open: it is damaged")

    def open_object(self, name, at, barred=()):  # the signed map in the box at `at`, and the writer key
        raw = self.read(name)
        about = name.encode() + self.store_id + raw[:at]
        plain, writer = self.open(name, raw[at:], about, lambda: blake3(raw).digest())
        return decode(io.BytesIO(unsign(plain, about, writer.signers - {one[0] for one in barred}))), writer

    def load_footer(self, pack):  # notes where each record of a pack is, section 3
        about, end = self.store_id + self.read(pack, 0, 32), os.stat(f"{self.path}/{pack}").st_size - 48
        box, about, named = self.read(pack, end), b"footer" + about, b"trailer" + about
        trailer, writer = self.open(pack, box, named, lambda: bytes.fromhex(pack[6:]))
        size, count = struct.unpack("<II", trailer)
        box = unbox(self.read(pack, end - size, size), writer.object_key, about)
        footer = unsign(box, about, writer.signers)
        start, offset = 2 + 16 * int.from_bytes(footer[:2], "little"), 32
        records, bases = footer[start : start + 48 * count], io.BytesIO(footer[start + 48 * count :])
        begin = whole = member = 0
        for ident, length, plain, counter, at, kind, codec in struct.iter_unpack("<32sIIIHBB", records):
            session, base = footer[2 + 16 * at :][:16], bases.read(32 * (0, 0, 1, 1, 2, 1, 2, 3, 4)[codec])
            begin, member = (offset, 0) if length else (begin, member + 1)
            whole = length or whole
            place = codec, pack, begin, whole, plain, counter, session, base, member
            self.index.setdefault((kind, ident), []).append(place)
            offset += length

    def record(self, kind, ident, chain=()):
        """Return the plaintext of a chunk (0) or node (1) from a copy that verifies, or None."""
        for place in sorted(self.index.get((kind, ident), ()), key=lambda place: (len(place[7]), place)):
            codec, pack, at, length, size, count, session, base, member = place
            if ident in (ids := re.findall(b"(?s).{32}", base)):
                continue  # two that stored the same at once; another copy is whole
            with watched(f"record {ident.hex()} in {pack} at byte {at}"):
                if ident in self.cache:
                    return self.cache[ident]
                need(ident not in chain, "is its own base")
                cipher, *keys = self.sessions[session]
                about = blake3(base).digest() if len(base) > 32 else base.ljust(32, b"\0")
                names = (ident + about, size, codec) if codec < 5 else (bytes(64), 0, 5)  # a group has none
                associated = self.store_id + names[0] + struct.pack("<IBBxx", names[1], kind, names[2])
                decrypt, width = (bindings.crypto_aead_aegis256_decrypt, 32) if cipher == 1 else (XCHACHA, 24)
                plain = self.read(pack, at, length)
                nonce = (count.to_bytes(8, "little") + plain[:16]).ljust(width, b"\0")
                plain = decrypt(plain[16:], associated, nonce, keys[kind])
                if codec:
                    data = b"".join(self.record(kind, below, (*chain, ident)) or b"" for below in ids)
                    raw = zstandard.DICT_TYPE_RAWCONTENT
                    words = zstandard.ZstdCompressionDict(data, raw) if codec == 2 else None
                    unpack = zstandard.ZstdDecompressor(words).decompress
                    if codec < 3:
                        plain = unpack(plain, max_output_size=size)
                    elif codec < 5:
                        one = io.BytesIO(unpack(plain, max_output_size=2 * size + 64))
                        plain = apply(data, [one] * 4, size)
                    else:
                        first, second, third = struct.unpack("<III", plain[:12])
                        ends = 12, 12 + first, 12 + first + second, 12 + first + second + third, len(plain)
                        frames = [plain[start:end] for start, end in pairwise(ends)]
                        streams = [io.BytesIO(unpack(frame, max_output_size=1 << 26)) for frame in frames]
                        plain = apply(data, streams, size, member)
                same = any(blake3(plain, key=one.id_keys[kind]).digest() == ident for one in self.writers)
                need(same and len(plain) == size, "does not match its id or length")
                self.cache = dict([*self.cache.items(), (ident, plain)][-16:])
                return plain
        return problem(f"record {ident.hex()}", "is in no pack that can be read")

    def references(self, reference):
        """Yield the references (kind, id, size) of a list, section 4; LOST for a lost node's."""
        todo = [(SPLICE, *reference[1:]) if reference[0] == LIST else reference]
        while todo:
            kind, ident, size = todo.pop()
            node = self.record(1, ident) if kind == SPLICE else None
            found = [(n >> 56, below, n % (1 << 56)) for below, n in struct.iter_unpack("<32sQ", node or b"")]
            if node and sum(below[2] for below in found) == size and all(below[2] for below in found):
                todo += reversed(found)
            else:
                yield (LOST if kind == SPLICE else kind), ident, size

    def fill(self, fd, reference, path, top_name=b""):
        """Restore all that a directory's list, section 5, holds into an open directory."""
        refs = list(self.references(reference))
        before, names, frames = len(problems), io.BytesIO(), []
        Stream(self, refs[0]).copy(refs[0][2], names, path)
        need(path not in problems[before:], "the names in this directory are lost")
        names.seek(0)
        while names.read(4):
            frames.append(decode(names))
        entries = [Entry(*frame[:8], *frame[8][:5]) for frame in frames[1:]]  # after the owners
        bundled = any(entry.content == 1 for entry in entries)
        wanted = 1 + bundled + sum(entry.content == 2 for entry in entries)
        if lost := [position for position, ref in enumerate(refs) if ref[0] == LOST]:  # how many it had
            refs[lost[0] : lost[-1] + 1] = [refs[lost[0]]] * (wanted - len(refs) + lost[-1] + 1 - lost[0])
        rest = iter(refs[1:])
        bundle = Stream(self, next(rest) if bundled else None)
        for entry in sorted(entries, key=lambda entry: entry.type == DIRECTORY):
            name, ref = entry.name or top_name, next(rest) if entry.content == 2 else None
            end = bundle.at + (entry.size if entry.content == 1 else 0)
            with watched(os.path.join(path, name)):
                self.put(fd, entry, name, os.path.join(path, name), ref, Stream(self, ref) if ref else bundle)
            bundle.copy(end - bundle.at)  # pass over what a hard link, or a failure, has left

    def put(self, fd, entry, name, path, ref, stream):  # names with the same entry.link become hard links
        need(name not in {b"", b".", b".."} and not {0, 47} & {*name}, "refused: a hostile name")
        before, link, root = len(problems), tuple(entry.link or ()), os.geteuid() == 0
        if link in self.links:
            folder, old = self.links[link]
            return os.link(old, name, src_dir_fd=folder, dst_dir_fd=fd, follow_symlinks=False)
        if entry.type == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=fd)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            with watched(path):
                if ref:
                    self.fill(inner, ref, path)
            os.close(inner)
        elif entry.type == FILE:
            flags, all_of_it = os.O_WRONLY | os.O_CREAT | os.O_EXCL, [[0, entry.size if entry.content else 0]]
            with open(os.open(name, flags, 0o600, dir_fd=fd), "wb") as file:
                file.truncate(entry.size)
                for offset, length in all_of_it if entry.extents is None else entry.extents:
                    file.seek(offset)
                    stream.copy(length, file, path)
        elif entry.type == LINK:
            os.symlink(entry.target, name, dir_fd=fd)
        else:
            os.mknod(name, entry.type << 12 | 0o600, entry.device, dir_fd=fd)
        if root:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        for key, value in [one for one in entry.xattrs if root or one[0].startswith((b"user.", b"system."))]:
            with watched(path):
                os.setxattr(b"/proc/self/fd/%d/%s" % (fd, name), key, value, follow_symlinks=False)
        if entry.type != LINK:  # set-id bits are only for the owner that the file had
            os.chmod(name, entry.mode & (0o7777 if root or entry.uid == os.geteuid() else 0o1777), dir_fd=fd)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)
        if link and path not in problems[before:]:
            self.links[link] = (self.top, path) if len(path) < 4000 else (os.dup(fd), name)
        return None

    def list_generations(self):
        for name in self.names("generations", r"[0-9a-f]{16}-[0-9]{10}"):
            with watched(name):
                g = self.open_object(name, 16)[0]
                at = time.strftime("%F %T %z", time.localtime(g["time"] // 10**9))
                parts = ", ".join(f"{part['name']} ({part['kind']})" for part in g["parts"])
                print(ascii(f"{g['service']} {g['number']}  {at}  revision {g['revision']}  {parts}")[1:-1])

    def restore(self, service, number, dest):
        tags = [blake3(service.encode(), key=writer.tag_key).hexdigest(8) for writer in self.writers]
        names = self.names("generations", f"({'|'.join(tags)})-{int(number):010d}")
        need(names, f"there is no generation {number} of {service}", 6)
        os.makedirs(dest, 0o700, exist_ok=True)
        need(not os.listdir(dest), f"{dest} is not empty", 2)
        generation, self.top = None, os.open(dest, os.O_RDONLY)
        for name in names:  # only one is accepted
            with watched(name):
                generation = self.open_object(name, 16)[0]
        need(generation, f"generation {number} of {service} does not open", 5)
        for pack in self.names("packs", r"[0-9a-f]{64}"):
            with watched(pack):
                self.load_footer(pack)
        for part in generation["parts"]:
            name, root, self.links = part["name"].encode(), part["root"], {}
            with watched(name):
                if part["kind"] == "tree":
                    self.fill(self.top, root, b"", name)
                else:  # a dump is like a file of ours
                    dump = Entry(name, FILE, 0o600, -1, -1, generation["time"], root[2] if root else 0, 2)
                    self.put(self.top, dump, name, name, root, Stream(self, root))


def apply(base, streams, size, member=None):
    """Return the plaintext that a delta makes of its base, section 3; member: in a group."""

    def number(stream):
        digits = [stream.read(1)[0]]
        while digits[-1] > 127:
            digits += stream.read(1)
        return sum((digit & 127) << 7 * place for place, digit in enumerate(digits))

    lengths, copies, moves, literals = streams  # all the same one, where the delta is in no group
    for _ in range(member or 0):
        literals.read(number(lengths))
        while number(copies):
            number(moves)
            literals.read(number(lengths))
    out, at = bytearray(), 0
    while True:
        new = literals.read(number(lengths))
        out += new
        if len(out) >= size:
            return bytes(out)
        length, moved = number(copies), number(moves)
        at += moved // 2 if moved % 2 == 0 else -(moved + 1) // 2
        at += 0 if member is None else len(new)
        out += base[at : at + length]
        at += length


class Stream:  # the bytes of a stream, in order
    def __init__(self, store, reference):
        self.store, self.at, self.left, self.data = store, 0, 0, None
        self.references = store.references(reference) if reference else iter(())

    def copy(self, length, file=None, path=b""):
        """Write the stream's next bytes, with zeros for lost ones; without a file, pass over them."""
        end = self.at + length
        while self.at < end:
            if not self.left:
                kind, ident, self.left = next(self.references, (LOST, b"", end - self.at))
                data = self.store.record(0, ident) if kind == CHUNK else None
                self.data = memoryview(data) if data and len(data) == self.left else None
            size = min(self.left, end - self.at)
            if file and self.data:
                file.write(self.data[:size])
            elif file:
                problem(path, f"{size} bytes are lost, zeros are in their place from byte {file.tell()} on")
                file.seek(size, os.SEEK_CUR)
            self.at, self.left, self.data = self.at + size, self.left - size, self.data and self.data[size:]


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv[1:]}:
        sys.exit(print(__doc__))
    need(len(sys.argv) in {4, 7} and sys.argv[2] == "--identity", __doc__, 2)
    _, path, _, identity, *wanted = sys.argv
    sys.setrecursionlimit(1_000_000)
    with watched(path):
        (Store.restore if wanted else Store.list_generations)(Store(path, read_identity(identity)), *wanted)
    need(not problems, f"{len(problems)} problems, named above; everything else is intact", 5)
