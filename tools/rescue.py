#!/usr/bin/env python3
"""Restore generations of a castore store without castore.

    rescue.py STORE --identity FILE                        lists the generations
    rescue.py STORE --identity FILE SERVICE NUMBER DEST    restores one: DEST, new or empty, becomes yours

Written from castore/docs/format.md alone, in its terms. Needs msgspec, zstandard, blake3, and PyNaCl >= 1.6.
Exit codes: 2 usage, 5 damage (named on standard error), 6 no such generation, 7 wrong identity.
"""

import base64
import getpass
import io
import os
import re
import struct
import sys
import time
from collections import deque, namedtuple
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import accumulate, islice, pairwise

import nacl.bindings as sodium
import zstandard
from blake3 import blake3
from msgspec.msgpack import decode as unpack

MIB, damaged = 1 << 20, []
CHUNK, LIST, INNER = range(3)  # kinds of references
DIRECTORY, FILE, SYMLINK, DEVICES = 4, 8, 10, {2, 6}
BASES = (0, 0, 1, 2, 3, 4)  # how many an entry of each codec has
OBJECT_OR_COPY = r"([1-9]\d*)(\.[0-9a-f]{32})?"
XCHACHA, AEGIS = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt, sodium.crypto_aead_aegis256_decrypt
Record = namedtuple("Record", "pack offset sealed member session entry bases")
Entry = namedtuple("Entry", "name type mode uid gid mtime size content target device link xattrs extents")


def require(condition, why):
    if not condition:
        raise ValueError(why)


def say(text, file=sys.stderr):  # escapes what a terminal could interpret
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=file)


@contextmanager
def reporting(what, label="DAMAGE"):
    try:
        yield
    except Exception as error:  # noqa: BLE001 - damaged and hostile bytes raise anything
        damaged.extend([what] if label == "DAMAGE" else [])
        say(f"{label}: {os.fsdecode(what)}: {error}")


def derive(material, *contexts):
    for context in contexts:
        material = blake3(material, derive_key_context="castore 1 " + context).digest()
    return material


def verify(plaintext, associated_data):
    signed = struct.pack("<I", len(associated_data)) + associated_data + plaintext[96:]
    sodium.crypto_sign_open(plaintext[32:96] + derive(signed, "signed"), plaintext[:32])
    return plaintext[96:], plaintext[:32]


def read_identity(path):
    with open(path, encoding="utf-8-sig") as file:
        text = "".join(re.sub(r"[\s-]", "", line) for line in file if not line.startswith("#"))
    match = re.fullmatch("castore(identity|locked)([a-z2-7]+)", text.lower())
    require(match, "it holds no castore-identity-... or castore-locked-...")
    data = base64.b32decode(match[2].upper() + "=" * (-len(match[2]) % 8))
    require(blake3(f"castore-{match[1]}-".encode() + data[:-4]).digest()[:4] == data[-4:], "it is mistyped")
    if match[1] == "identity":
        return data[:-4]
    salt, opslimit, kib, nonce, data = struct.unpack("<16sII24s48s", data[:-4])
    phrase, argon2 = getpass.getpass("Passphrase: ").encode(), sodium.crypto_pwhash_ALG_ARGON2ID13
    return XCHACHA(data, b"", nonce, sodium.crypto_pwhash_alg(32, phrase, salt, opslimit, kib << 10, argon2))


@lru_cache(maxsize=8)  # consecutive chunks are in one delta group
def decompress(frame, limit):
    require(zstandard.frame_content_size(frame) <= limit, "a zstd frame is too long")
    return zstandard.decompress(frame)


def read_number(stream):
    byte = stream.read(1)[0]
    return byte & 127 | (read_number(stream) << 7 if byte > 127 else 0)


def apply_delta(streams, member, base, plain):
    lengths, counts, moves, literals = streams
    for _ in range(member):
        literals.seek(read_number(lengths), os.SEEK_CUR)
        while read_number(counts):
            read_number(moves)
            literals.seek(read_number(lengths), os.SEEK_CUR)
    length, position = read_number(lengths), 0
    made = bytearray(literals.read(length))
    while len(made) < plain:
        count, move = read_number(counts), read_number(moves)
        position += (move >> 1 ^ -(move & 1)) + length
        require(0 <= position <= len(base) - count, "a delta copies what its base does not have")
        length = read_number(lengths)
        made += base[position : position + count] + literals.read(length)
        position += count
    return bytes(made)


class Stream:
    def __init__(self, chunks):
        self.chunks, self.data, self.is_lost, self.lost = chunks, b"", False, 0

    def read(self, count):  # yields the next bytes in pieces, and whether zeros replace them
        while count > 0:
            if not self.data:
                self.data, self.is_lost = next(self.chunks, (bytes(MIB), True))
            piece, self.data = self.data[:count], self.data[count:]
            count -= len(piece)
            yield piece, self.is_lost

    def save(self, path, size, extents):
        with open(os.path.basename(path), "xb") as file:
            file.truncate(size)
            for offset, count in extents:
                file.seek(offset)
                for piece, is_lost in self.read(count):
                    file.write(piece)
                    self.lost += len(piece) if is_lost else 0
        with reporting(path):
            require(not self.lost, f"{self.lost} bytes are lost, zeros replace them")


class Store:  # opens and checks objects: sections 1 to 4 and 6; restores parts: section 5
    def __init__(self, path, identity):
        self.path, self.keys = os.path.abspath(path), (sodium.crypto_scalarmult_base(identity), identity)
        self.sessions, self.generations, self.index, self.accepted, self.newest = {}, {}, {}, None, None
        self.trusted = self.own = {sodium.crypto_sign_seed_keypair(derive(identity, "admin"))[0]}
        self.read_folder("config", OBJECT_OR_COPY, self.add_config, "passed over")
        require(self.newest, f"{path} has no config/ that opens with this identity")
        signer, self.admins, self.store_id, self.config, secret = self.accepted or self.newest
        if not self.accepted:
            key = base64.b32encode(signer + blake3(b"castore-admin-" + signer).digest()[:4]).decode().lower()
            say(f"NOT VERIFIED: the configuration is signed by castore-admin-{key.rstrip('=')}")
        self.writers = {writer[0]: writer for writer in self.config["writers"]}
        self.secrets = [secret, *reversed(self.config["previous_secrets"])]
        self.id_keys = [[derive(secret, kind) for secret in self.secrets] for kind in ("chunk id", "node id")]
        self.listed = None if self.config["rotation"] else {}
        self.read_folder("rotations", OBJECT_OR_COPY, self.add_rotation, "passed over")
        with reporting(f"rotations/{self.config['rotation']}"):
            require(self.listed is not None, "lost: objects under a previous secret are not compared with it")
        self.read_folder("generations", r"[0-9a-f]{16}-\d{10}", self.add_generation)

    def read_folder(self, folder, pattern, add, label="DAMAGE"):  # in order of numbers
        path = os.path.join(self.path, folder)
        matches = [re.fullmatch(pattern, name) for name in (os.listdir(path) if os.path.isdir(path) else ())]
        for match in sorted(filter(None, matches), key=lambda match: [(len(x), x) for x in match.groups("")]):
            with reporting(f"{folder}/{match[0]}", label):
                add(f"{folder}/{match[0]}", *match.groups())

    def read(self, name, offset=0, length=256 * MIB):
        with open(os.path.join(self.path, name), "rb") as file:
            require(file.read(16) == b"castore%b\1" % name[:1].encode() + bytes(7), "its header is damaged")
            return os.pread(file.fileno(), length, offset)

    def add_config(self, name, number, _):
        data = self.read(name)
        opened, end = b"", 34 + 96 * int.from_bytes(data[32:34], "little")
        for start in range(34, end, 96):
            with suppress(Exception):
                opened = opened or sodium.crypto_box_seal_open(data[start : start + 96], *self.keys)
        require(opened[:16] == data[16:32], "it is not sealed to this identity")
        self.secrets, associated_data = [opened[16:]], f"config/{number}".encode() + data[:end]
        record, signer = verify(self.decrypt(data[end:], associated_data)[0], associated_data)
        config = unpack(record)
        admins = {admin[0] for admin in config["admins"]}
        self.newest = signer, admins, data[16:32], config, opened[16:]
        if signer in self.trusted & admins:
            self.accepted, self.trusted = self.newest, self.own | admins

    def add_rotation(self, name, number, _):
        data = self.read(name)
        require(blake3(data).digest() == self.config["rotation_hash"], "the configuration names another")
        associated_data = f"rotations/{number}".encode() + self.store_id + data[:16]
        rotation = unpack(self.decrypt(data[16:], associated_data)[0])
        packs = struct.iter_unpack("32s", rotation["packs"])
        self.listed = {f"packs/{pack.hex()}": pack for (pack,) in packs} | rotation["objects"]

    def decrypt(self, ciphertext, associated_data):
        for secret in self.secrets:
            with suppress(Exception):
                key = derive(secret, "index", "objects")
                return XCHACHA(ciphertext[24:], associated_data, ciphertext[:24], key), secret
        raise ValueError("it does not decrypt")

    def open(self, name, data, clear=16, label=None):  # returns record, signer, and writer secret
        associated_data = (label or name).encode() + self.store_id + data[:clear]
        plaintext, secret = self.decrypt(data[clear:], associated_data)
        record, signer = verify(plaintext, associated_data)
        previous = secret != self.secrets[0]
        if previous and self.listed is not None:
            require(self.listed.get(name) == blake3(self.read(name)).digest(), "it is not listed")
        accepted = self.admins | {key for key, writer in self.writers.items() if previous or not writer[5]}
        former = previous and signer in self.config["previous_admins"]
        require(former or signer in accepted, "its signer is not accepted")
        return record, signer, secret

    def add_session(self, name, session, number):
        record, signer, secret = self.open(name, self.read(name), 32)
        fields, session = unpack(record), bytes.fromhex(session)
        require((fields["writer"], number) == (signer, "0") or signer not in self.writers, "another writer")
        opened = sodium.crypto_box_seal_open(dict(fields["sealed_keys"])[self.keys[0]], *self.keys)
        node_key = fields.get("node_key") or derive(derive(secret, "index") + session, "nodes")
        self.sessions[session] = fields["cipher"], (opened[16:], node_key)

    def add_generation(self, name):
        record, signer, secret = self.open(name, self.read(name))
        generation, writer = unpack(record), self.writers.get(signer)
        tag = blake3(generation["service"].encode(), key=derive(secret, "index", "tag")).hexdigest()[:16]
        require(name == f"generations/{tag}-{generation['number']:010}", "its name is another's")
        require(not writer or generation["host"] in (writer[2], *writer[7]), "its host is another's")
        self.generations[generation["service"], str(generation["number"])] = generation

    def add_pack(self, name):
        end, head = os.path.getsize(os.path.join(self.path, name)) - 48, self.read(name, 0, 32)
        trailer, _ = self.decrypt(self.read(name, end), b"trailer" + self.store_id + head)
        length, count = struct.unpack("<II", trailer)
        record, _, _ = self.open(name, head + self.read(name, end - length, length), 32, "footer")
        footer, offset, sealed, member = io.BytesIO(record), 32, 0, 0
        sessions = [footer.read(16) for _ in range(int.from_bytes(footer.read(2), "little"))]
        for entry in struct.iter_unpack("<32sIIIHBB", footer.read(48 * count)):
            identifier, new, _, _, session, kind, codec = entry
            offset, sealed, member = (offset + sealed, new, 0) if new else (offset, sealed, member + 1)
            bases = [footer.read(32) for _ in range(BASES[codec])]
            record = Record(name, offset, sealed, member, sessions[session], entry, bases)
            self.index.setdefault((kind, identifier), []).append(record)

    def open_record(self, record, base):
        identifier, _, plain, counter, _, kind, codec = record.entry
        require(plain <= 32 * MIB and record.session in self.sessions, "its session does not open")
        cipher, keys = self.sessions[record.session]
        fields = (identifier, plain, kind, codec) if codec < 2 else (b"", 0, 0, 2)
        associated_data = self.store_id + struct.pack("<32sIBBxx", *fields)
        data = self.read(record.pack, record.offset, record.sealed)
        opener, layout = (AEGIS, "<Q16s8x") if cipher == 1 else (XCHACHA, "<Q16s")
        payload = opener(data[16:], associated_data, struct.pack(layout, counter, data), keys[kind])
        if codec < 2:
            return decompress(payload, plain) if codec else payload
        starts = [*accumulate((12, *struct.unpack_from("<III", payload))), len(payload)]
        streams = [io.BytesIO(decompress(payload[start:end], 32 * MIB)) for start, end in pairwise(starts)]
        return apply_delta(streams, record.member, base, plain)

    def get(self, kind, identifier, depth=0):  # returns the first copy that is intact, or None
        self.opened = self.opened + 1 if depth else 1
        require(depth <= 8 and self.opened <= 1024, "it depends on too many records")
        for record in self.index.get((kind, identifier), ()):
            with reporting(f"a record in {record.pack}", "PASSED OVER"):
                bases = [self.get(kind, base, depth + 1) for base in record.bases]
                require(None not in bases, "its base is lost")
                plaintext = self.open_record(record, b"".join(bases))
                ids = [blake3(plaintext, key=key).digest() for key in self.id_keys[kind]]
                require(identifier in ids, "its id is another")
                return plaintext
        return None

    def references(self, kind, identifier, size):  # of a list, or the one to a chunk; INNER is to a lost node
        todo = [(INNER if kind == LIST else kind, identifier, size)]
        while todo:
            kind, identifier, size = todo.pop()
            node = self.get(1, identifier) if kind == INNER and size else None
            if node:
                below = [(top >> 56, id_, top % (1 << 56)) for id_, top in struct.iter_unpack("<32sQ", node)]
                require(sum(length for _, _, length in below) == size, "a node has another size")
                todo += reversed(below)
            else:
                yield kind, identifier, size

    def chunks(self, reference):  # yields the data of a stream, and whether zeros replace it
        average = self.config["average_chunk_size"]
        for kind, identifier, size in islice(self.references(*reference), 16 + reference[2] * 16 // average):
            data = self.get(CHUNK, identifier) if kind == CHUNK and size <= 8 * average else None
            if data and len(data) == size:
                yield memoryview(data), False
            else:
                yield from ((bytes(min(MIB, size - done)), True) for done in range(0, size, MIB))

    def list(self):
        for one in sorted(self.generations.values(), key=lambda one: (one["service"], one["number"])):
            moment = time.strftime("%F %T", time.gmtime(one["time"] // 10**9))
            parts = [f"{part['name']} ({part['kind']}, {part['size']} bytes)" for part in one["parts"]]
            about = f"{one['service']} {one['number']}  {moment}  {one['revision'] or '-'}  {one['host']}"
            say(f"{about}  {', '.join(parts)}", sys.stdout)

    def restore(self, service, number, dest):
        if (service, number) not in self.generations:
            say(f"there is no generation {number} of {service}")
            return 5 if damaged else 6
        with reporting(dest, "cannot restore into"):
            os.makedirs(dest, exist_ok=True)
            os.fchdir(os.open(os.path.abspath(dest), os.O_DIRECTORY | os.O_NOFOLLOW))
            require(not os.listdir(), "it is not empty")
            with reporting(dest, "other users can change it meanwhile"):
                os.chown(".", os.geteuid(), -1)
                os.chmod(".", 0o700)
                for name in {"system.posix_acl_default"} & {*os.listxattr(".")}:  # parts would inherit it
                    os.removexattr(".", name)
            self.read_folder("sessions", r"([0-9a-f]{32})\.(0|[1-9]\d*)", self.add_session)
            self.read_folder("packs", "[0-9a-f]{64}", self.add_pack)
            for part in self.generations[service, number]["parts"]:
                with reporting(part["name"]):
                    self.part, self.links, self.directories, root = part, {}, 0, part["root"] or (0, b"", 0)
                    require(re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,99}", part["name"]), "a hostile name")
                    if part["kind"] == "tree":
                        self.restore_directory(b"", root)
                    else:
                        Stream(self.chunks(root)).save(part["name"], root[2], [(0, root[2])])
            if os.geteuid():
                say("owners are left out: only root can set them")
            return 0
        return 2

    def restore_directory(self, path, reference):
        self.directories += 1
        require(self.directories <= self.part["files"] + 2, "the tree has too many directories")
        references = list(islice(self.references(*reference), self.part["files"] + 3))
        require(all(kind != INNER for kind, _, _ in references), "a node of it is lost")
        pieces = [*Stream(self.chunks(references[0])).read(min(references[0][2], 256 * MIB))]
        require(not any(is_lost for _, is_lost in pieces), "its entries are lost")
        data = io.BytesIO(b"".join(piece for piece, _ in pieces))
        frames = (data.read(int.from_bytes(length, "little")) for length in iter(lambda: data.read(4), b""))
        owners, *entries = map(unpack, frames)
        entries, below = [Entry(*entry[:8], *entry[8][:5]) for entry in entries], iter(references[1:])
        runs = owners[3] or [len(entries), 0, 0] * any(entry.content == 1 for entry in entries)
        require(sum(runs[2::3]) <= reference[2], "its small files have impossible places")
        places = ((s, gap * (not i)) for n, s, gap in zip(*[iter(runs)] * 3, strict=True) for i in range(n))
        small = [*map(Stream, map(self.chunks, islice(below, max(runs[1::3], default=-1) + 1))), Stream(())]
        for entry in sorted(entries, key=lambda entry: entry.type == DIRECTORY):
            reference = next(below) if entry.content == 2 else None
            stream, gap, size = (*next(places), min(entry.size, MIB)) if entry.content == 1 else (-1, 0, 0)
            data = iter(deque(small[stream].read(gap), 0) or [*small[stream].read(size)])
            name = entry.name if path else self.part["name"].encode()
            label = "LEFT OUT" if entry.type in DEVICES and os.geteuid() else "DAMAGE"
            with reporting(os.path.join(path, name), label):
                require(not {*b"/\0"} & {*name} and name not in {b"", b".", b".."}, "its name is hostile")
                self.restore_entry(os.path.join(path, name), entry._replace(name=name), reference, data)

    def restore_entry(self, path, entry, reference, data):  # the content: what `reference` names, or data
        first = self.links.setdefault(tuple(entry.link), path) if entry.link else path
        with suppress(OSError):
            if first != path:
                os.link(b"../" * path.count(b"/") + first, entry.name, follow_symlinks=False)
                return
        if entry.type == DIRECTORY:
            os.mkdir(entry.name)
            os.chdir(entry.name)
            with reporting(path):
                if reference:
                    self.restore_directory(path, reference)
            os.chdir("..")
        elif entry.type == FILE:
            stream = Stream(self.chunks(reference) if reference else data)
            stream.save(path, entry.size, entry.extents or [(0, entry.size if entry.content else 0)])
        elif entry.type == SYMLINK:
            os.symlink(entry.target, entry.name)
        else:
            os.mknod(entry.name, entry.type << 12 | 0o600, entry.device)
        if not os.geteuid():
            os.chown(entry.name, entry.uid, entry.gid, follow_symlinks=False)
        for name, value in entry.xattrs:
            with reporting(path, f"the attribute {name} is left out"):
                os.setxattr(entry.name, name, value, follow_symlinks=False)
        if entry.type != SYMLINK:
            os.chmod(entry.name, entry.mode & (0o7777 if os.geteuid() in {0, entry.uid} else 0o1777))
        os.utime(entry.name, ns=(entry.mtime, entry.mtime), follow_symlinks=False)


def main():
    arguments = sys.argv[1:]
    if len(arguments) not in {3, 6} or arguments[1] != "--identity":
        is_help = {"-h", "--help"} & {*arguments}
        return print(__doc__, file=sys.stdout if is_help else sys.stderr) or (0 if is_help else 2)
    sys.setrecursionlimit(10**5)  # a directory may be deep
    os.umask(0o077)
    path, _, identity, *wanted = arguments
    with reporting(f"{path} with {identity}", "cannot open"):
        store = Store(path, read_identity(identity))
        return (store.restore(*wanted) if wanted else store.list()) or (5 if damaged else 0)
    return 7


if __name__ == "__main__":
    sys.exit(main())
