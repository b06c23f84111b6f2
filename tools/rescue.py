#!/usr/bin/env python3
"""Restore generations of a castore store without castore.

    rescue.py STORE --identity FILE                        lists the generations
    rescue.py STORE --identity FILE SERVICE NUMBER DEST    restores one: DEST, new or empty, gets its parts

Written from castore/docs/format.md alone, in its terms. Needs zstandard, blake3, and PyNaCl 1.6 or newer.
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
from collections import namedtuple
from contextlib import contextmanager, suppress
from itertools import accumulate, islice, pairwise

import nacl.bindings as sodium
import zstandard
from blake3 import blake3
from nacl.exceptions import CryptoError

MIB = 1 << 20
CHUNK, LIST, INNER, LOST = range(4)  # kinds of references; LOST: to a node that is damaged
FIFO, DIRECTORY, FILE, SYMLINK, SOCKET = 1, 4, 8, 10, 12
BASES = (0, 0, 1, 1, 2, 1, 2, 3, 4)  # how many an entry of each codec has
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TYPES = ((0xDE, dict, 2), (0xDC, list, 2), (0xD9, str, 1), (0xC4, bytes, 1), (0xA0, str, 0), (0x90, list, 0),
         (0x80, dict, 0))  # first byte, type, bytes of the shortest length # fmt: skip
Secret = namedtuple("Secret", "id_keys index_key object_key tag_key")
Record = namedtuple("Record", "pack offset sealed member id plain counter session kind codec bases")
Entry = namedtuple("Entry", "name type mode uid gid mtime size content target device link xattrs extents")
damaged = []


def require(condition, why):
    if not condition:
        raise ValueError(why)


def say(text, file=sys.stderr):
    """Print a line; escape what a terminal could interpret."""
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=file)


@contextmanager
def reporting(what):
    """Name the damage that shows in the block, and go on after it."""
    try:
        yield
    except Exception as error:  # damaged and hostile bytes raise anything
        damaged.append(what)
        say(f"DAMAGE: {os.fsdecode(what)}: {error}")


def unpack(stream):
    """Return the next MessagePack value."""
    first = stream.read(1)[0]
    if first < 0x80 or first >= 0xE0:
        return first if first < 0x80 else first - 256
    if first in {0xC0, 0xC2, 0xC3}:
        return {0xC0: None, 0xC2: False, 0xC3: True}[first]
    if 0xCC <= first <= 0xD3:
        return int.from_bytes(stream.read(1 << (first & 3)), "big", signed=first >= 0xD0)
    start, kind, width = next(row for row in TYPES if first >= row[0])
    count = int.from_bytes(stream.read(width << (first - start)), "big") if width else first - start
    if kind in {bytes, str}:
        value = stream.read(count)
        require(len(value) == count, "MessagePack is cut short")
        return value if kind is bytes else value.decode()
    items = [unpack(stream) for _ in range(count * (2 if kind is dict else 1))]
    return items if kind is list else dict(zip(items[::2], items[1::2], strict=True))


def derive(context, material):
    return blake3(material, derive_key_context="castore 1 " + context).digest()


def derive_secret(secret):
    """Return the keys that come from a writer secret."""
    id_keys, index_key = (derive("chunk id", secret), derive("node id", secret)), derive("index", secret)
    return Secret(id_keys, index_key, derive("objects", index_key), derive("tag", index_key))


def decrypt(key, ciphertext, associated_data):
    nonce, sealed = ciphertext[:24], ciphertext[24:]
    return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, associated_data, nonce, key)


def open_signed_record(plaintext, associated_data):
    """Return the record, as a stream, and its signer."""
    signed = struct.pack("<I", len(associated_data)) + associated_data + plaintext[96:]
    sodium.crypto_sign_open(plaintext[32:96] + derive("signed", signed), plaintext[:32])
    return io.BytesIO(plaintext[96:]), plaintext[:32]


def read_identity(path):
    """Return the identity in a file; ask for the passphrase if it is locked."""
    with open(path, encoding="utf-8-sig") as file:
        text = "".join(re.sub(r"[\s-]", "", line) for line in file if not line.startswith("#"))
    match = re.fullmatch("castore(identity|locked)([a-z2-7]+)", text.lower())
    require(match, "it holds no castore-identity-... or castore-locked-...")
    data = base64.b32decode(match[2].upper() + "=" * (-len(match[2]) % 8))
    check = blake3(f"castore-{match[1]}-".encode() + data[:-4]).digest()[:4]
    require(check == data[-4:], "a character is wrong")
    if match[1] == "identity":
        return data[:-4]
    salt, operations, kib, sealed = struct.unpack("<16sII72s", data[:-4])
    phrase, argon2 = getpass.getpass("Passphrase: ").encode(), sodium.crypto_pwhash_ALG_ARGON2ID13
    key = sodium.crypto_pwhash_alg(32, phrase, salt, operations, kib * 1024, argon2)
    with suppress(CryptoError):
        return decrypt(key, sealed, b"")
    raise ValueError("the passphrase is wrong")


def decompress(frame, limit, **options):
    require(zstandard.frame_content_size(frame) <= limit, "a zstd frame is too long")
    return zstandard.ZstdDecompressor(**options).decompress(frame, max_output_size=limit)


def read_number(stream, shift=0):
    """Read a number of 7 bits a byte, of at most 5 bytes."""
    require(shift < 35, "a number in a delta is too long")
    byte = stream.read(1)[0]
    return (byte & 127) << shift | (read_number(stream, shift + 7) if byte > 127 else 0)


def apply_delta(streams, member, base, plain):
    """Make a plaintext from a base. member: in a delta group; None: the streams of this delta are one."""
    lengths, counts, moves, literals = streams
    for _ in range(member or 0):
        literals.seek(read_number(lengths), os.SEEK_CUR)
        while read_number(counts):
            read_number(moves)
            literals.seek(read_number(lengths), os.SEEK_CUR)
    made, position = bytearray(), 0
    while True:
        length = read_number(lengths)
        made += literals.read(length)
        if len(made) >= plain:
            return bytes(made)
        count, move = read_number(counts), read_number(moves)
        position += (move >> 1 ^ -(move & 1)) + (0 if member is None else length)
        require(0 <= position <= len(base) - count, "a delta copies what its base does not have")
        made += base[position : position + count]
        position += count


class Store:
    """Opens and checks the objects of a store: sections 1 to 4 and 6."""

    def __init__(self, path, identity):
        self.path, self.index, self.recent, self.sessions = path, {}, {}, {}
        self.keys = sodium.crypto_scalarmult_base(identity), identity
        _, self.admins, self.store_id, self.config, secret = self.accept_config()
        self.writers = {writer[0]: writer for writer in self.config["writers"]}
        self.secrets = [secret, *map(derive_secret, reversed(self.config["previous_secrets"]))]
        self.listed = None
        with reporting(f"rotations/{self.config['rotation']}"):
            self.listed = self.read_rotation(self.config["rotation"]) if self.config["rotation"] else {}

    def names(self, folder, pattern):
        """Return the matches of the names in a folder, the highest number last."""
        folder = os.path.join(self.path, folder)
        names = os.listdir(folder) if os.path.isdir(folder) else ()
        matches = [match for match in (re.fullmatch(pattern, name) for name in names) if match]
        return sorted(matches, key=lambda match: (len(match[0]), match[0]))

    def read(self, name, offset=0, length=-1):
        """Return bytes of an object whose size and header are right."""
        folder, path = name.split("/")[0], os.path.join(self.path, name)
        limit = (64 if folder == "packs" else 256) * MIB
        require(os.path.isfile(path) and os.path.getsize(path) <= limit, "it is too large, or missing")
        header = b"castore" + folder[:1].encode() + b"\1\0" + bytes(6)
        with open(path, "rb") as file:
            require(file.read(16) == header, "its header is damaged")
            file.seek(offset)
            return file.read(length)

    def accept_config(self):
        """Open the newest configuration whose signer is pinned or, without such a one, the newest."""
        own = {sodium.crypto_sign_seed_keypair(derive("admin", self.keys[1]))[0]}
        pins, accepted, newest = own, None, None
        names = self.names("config", r"([1-9]\d*)(\.[0-9a-f]{32})?")
        for match in sorted(names, key=lambda match: int(match[1])):
            try:
                newest = self.open_config(b"config/" + match[1].encode(), self.read("config/" + match[0]))
                if newest[0] in pins & newest[1]:
                    accepted, pins = newest, own | newest[1]
            except Exception as error:
                say(f"config/{match[0]} is passed over: {error}")
        require(newest, f"{self.path} has no config/ that opens with this identity")
        if not accepted:
            check = blake3(b"castore-admin-" + newest[0]).digest()[:4]
            key = "castore-admin-" + base64.b32encode(newest[0] + check).decode().lower().rstrip("=")
            signer = key if newest[0] in newest[1] else "the machine that made the store, and by no admin"
            say(f"NOT VERIFIED: the configuration is signed by {signer}")
        require((accepted or newest)[3]["version"] == 1, "the store is of another version")
        return accepted or newest

    def open_config(self, name, data):
        """Return signer, admins, store id, record, and secret."""
        opened, end = b"", 34 + 96 * int.from_bytes(data[32:34], "little")
        for start in range(34, end, 96):
            with suppress(CryptoError):
                opened = opened or sodium.crypto_box_seal_open(data[start : start + 96], *self.keys)
        require(opened[:16] == data[16:32], "it is not sealed to this identity")
        secret, associated_data = derive_secret(opened[16:]), name + data[:end]
        plaintext = decrypt(secret.object_key, data[end:], associated_data)
        record, signer = open_signed_record(plaintext, associated_data)
        config = unpack(record)
        admins = {admin[0] for admin in config["admins"]}
        require(signer in (admins or {writer[0] for writer in config["writers"]}), "its signer is unknown")
        return signer, admins, data[16:32], config, secret

    def read_rotation(self, number):
        """Return the hashes, by name, of the objects that are accepted under previous secrets."""
        for match in self.names("rotations", rf"{number}(\.[0-9a-f]{{32}})?"):
            with suppress(Exception):
                data = self.read("rotations/" + match[0])
                require(blake3(data).digest() == self.config["rotation_hash"], "its hash is another")
                associated_data = b"rotations/%d" % number + self.store_id + data[:16]
                plaintext = decrypt(self.secrets[0].object_key, data[16:], associated_data)
                rotation = unpack(io.BytesIO(plaintext))
                packs = struct.iter_unpack("32s", rotation["packs"])
                return {f"packs/{pack.hex()}": pack for (pack,) in packs} | rotation["objects"]
        raise ValueError("it is lost: what is under a previous writer secret is used without this check")

    def decrypt(self, ciphertext, associated_data):
        """Return the plaintext, and the secret whose object key opens it."""
        for secret in self.secrets:
            with suppress(CryptoError):
                return decrypt(secret.object_key, ciphertext, associated_data), secret
        raise ValueError("it does not decrypt")

    def open_signed(self, name, ciphertext, associated_data):
        """Return the record of an accepted signer, the signer, and the secret."""
        plaintext, secret = self.decrypt(ciphertext, associated_data)
        previous = secret is not self.secrets[0]
        if previous and self.listed is not None:
            listed = self.listed.get(name) == blake3(self.read(name)).digest()
            require(listed, "it is under a previous writer secret, and not listed")
        record, signer = open_signed_record(plaintext, associated_data)
        writer = self.writers.get(signer)
        valid = signer in self.admins or (writer and (previous or not writer[5]))
        valid = valid or (previous and signer in self.config["previous_admins"])
        require(valid, "its signer is not accepted")
        return record, signer, secret

    def open_object(self, name, clear=16):
        """Return the map that an object holds after the bytes in clear, its signer, and its secret."""
        data = self.read(name)
        associated_data = name.encode() + self.store_id + data[:clear]
        record, signer, secret = self.open_signed(name, data[clear:], associated_data)
        fields = unpack(record)
        require(fields["version"] == 1, "it is of another version")
        return fields, signer, secret

    def open_sessions(self):
        for match in self.names("sessions", r"([0-9a-f]{32})\.(0|[1-9]\d*)"):
            with reporting("sessions/" + match[0]):
                session = bytes.fromhex(match[1])
                fields, signer, secret = self.open_object("sessions/" + match[0], 32)
                first = fields["writer"] == signer and match[2] == "0"
                require(first or signer not in self.writers, "its signer is not its writer")
                opened = sodium.crypto_box_seal_open(dict(fields["sealed_keys"])[self.keys[0]], *self.keys)
                require(opened[:16] == session, "its key is another's")
                node_key = fields.get("node_key") or derive("nodes", secret.index_key + session)
                self.sessions[session] = fields["writer"], fields["cipher"], (opened[16:], node_key)

    def generations(self):
        """Return the accepted generations by service and number."""
        found = {}
        for match in self.names("generations", r"([0-9a-f]{16})-(\d{10})"):
            with reporting("generations/" + match[0]):
                generation, signer, secret = self.open_object("generations/" + match[0])
                tag = blake3(generation["service"].encode(), key=secret.tag_key).hexdigest()[:16]
                require((tag, generation["number"]) == (match[1], int(match[2])), "its name is another's")
                writer = self.writers.get(signer)
                own = not writer or generation["host"] in (writer[2], *writer[7])
                require(own and generation["host_id"] == signer.hex(), "its host is another's")
                names = [part["name"] for part in generation["parts"]]
                valid = len({*names}) == len(names) and all(map(NAME.fullmatch, names))
                require(valid, "the names of its parts are not valid")
                found[generation["service"], generation["number"]] = generation
        return found

    def index_pack(self, pack):
        """Add the records of a pack to the index."""
        end = os.path.getsize(os.path.join(self.path, pack)) - 48
        head = self.store_id + self.read(pack, 0, 32)
        length, count = struct.unpack("<II", self.decrypt(self.read(pack, end), b"trailer" + head)[0])
        end -= length
        footer, signer, _ = self.open_signed(pack, self.read(pack, end, length), b"footer" + head)
        sessions = [footer.read(16) for _ in range(int.from_bytes(footer.read(2), "little"))]
        writers = {self.sessions[session][0] for session in sessions if session in self.sessions}
        maintains = signer not in self.writers or "maintain" in self.writers[signer][4]
        require(maintains or writers <= {signer}, "a machine may only add to its own sessions")
        entries, offset, sealed, member = footer.read(48 * count), 32, 0, 0
        for id_, new, plain, counter, session, kind, codec in struct.iter_unpack("<32sIIIHBB", entries):
            offset, sealed, member = (offset + sealed, new, 0) if new else (offset, sealed, member + 1)
            bases = tuple(footer.read(32) for _ in range(BASES[codec]))
            require(plain <= 32 * MIB and 16 < sealed <= end - offset, "an entry's length is wrong")
            place = pack, offset, sealed, member
            record = Record(*place, id_, plain, counter, sessions[session], kind, codec, bases)
            self.index.setdefault((kind, id_), []).append(record)

    def open_record(self, record, base):
        """Return the plaintext of a record, made from its bases, joined."""
        ids = b"".join(record.bases)
        ids = ids if len(ids) < 64 else blake3(ids).digest()
        fields = (record.id, ids, record.plain) if record.codec < 5 else (b"", b"", 0)
        fields += record.kind, min(record.codec, 5)
        associated_data = self.store_id + struct.pack("<32s32sIBBxx", *fields)
        require(record.session in self.sessions, "its session does not open")
        _, cipher, keys = self.sessions[record.session]
        data = self.read(record.pack, record.offset, record.sealed)
        nonce, key = struct.pack("<Q", record.counter) + data[:16], keys[record.kind]
        if cipher == 1:
            payload = sodium.crypto_aead_aegis256_decrypt(data[16:], associated_data, nonce + bytes(8), key)
        else:
            payload = decrypt(key, nonce + data[16:], associated_data)
        if record.codec < 3:
            raw = zstandard.ZstdCompressionDict(base, zstandard.DICT_TYPE_RAWCONTENT) if base else None
            return decompress(payload, record.plain, dict_data=raw) if record.codec else payload
        if record.codec < 5:
            delta = io.BytesIO(decompress(payload, 2 * record.plain + 64))
            return apply_delta([delta] * 4, None, base, record.plain)
        starts = [*accumulate((12, *struct.unpack_from("<III", payload))), len(payload)]
        frames = [payload[start:end] for start, end in pairwise(starts)]
        require(sum(map(zstandard.frame_content_size, frames)) <= 32 * MIB, "a delta group is too long")
        streams = [io.BytesIO(decompress(frame, 32 * MIB)) for frame in frames]
        return apply_delta(streams, record.member, base, record.plain)

    def get(self, kind, identifier, above=()):
        """Return the plaintext of a chunk (kind 0) or node (1), from its first copy that is intact."""
        if identifier in self.recent:
            return self.recent[identifier]
        self.opened, reason = self.opened + 1 if above else 1, "no pack has it"
        require(len(above) <= 8 and self.opened <= 1024, "it depends on too many records")
        for record in self.index.get((kind, identifier), ()):
            try:
                require(record not in above, "it depends on itself")
                base = b"".join(self.get(kind, base, (*above, record)) for base in record.bases)
                plaintext = self.open_record(record, base)
                ids = [blake3(plaintext, key=secret.id_keys[kind]).digest() for secret in self.secrets]
                require(len(plaintext) == record.plain and identifier in ids, "its id or length is another")
                self.recent = dict([*self.recent.items(), (identifier, plaintext)][-8:])
                return plaintext
            except Exception as error:
                reason = error
        raise ValueError(reason)

    def references(self, kind, identifier, size):
        """Yield the references of a list, or the one to a chunk; for a damaged node (LOST, reason, size)."""
        todo = [(INNER if kind == LIST else kind, identifier, size)]
        while todo:
            kind, identifier, size = todo.pop()
            if kind != INNER:
                yield kind, identifier, size
                continue
            try:
                pairs = struct.iter_unpack("<32sQ", self.get(1, identifier))
                below = [(top >> 56, inner, top & (1 << 56) - 1) for inner, top in pairs]
                sizes = [length for _, _, length in below]
                require(all(sizes) and sum(sizes) == size, "a node has another size")
                todo += reversed(below)
            except Exception as error:
                yield LOST, error, size


class Stream:
    """The bytes of a stream, in order."""

    def __init__(self, store, reference):
        self.store, self.at, self.left, self.reason = store, 0, 0, None
        self.average = store.config["average_chunk_size"]
        self.references = islice(store.references(*reference), 16 + reference[2] * 16 // self.average)

    def copy(self, count, file):
        """Write the next bytes to a file, with zeros for lost ones; return how many are lost."""
        lost, end = 0, self.at + count
        while self.at < end:
            if not self.left:
                none = LOST, "it has too many chunks, or not enough", end - self.at
                kind, identifier, self.left = next(self.references, none)
                try:
                    require(kind == CHUNK and self.left <= 8 * self.average, identifier)
                    self.data = memoryview(self.store.get(0, identifier))
                    require(len(self.data) == self.left, "a chunk has another length")
                except Exception as error:
                    self.data, self.reason = None, error
            length = min(self.left, end - self.at)
            if self.data is None:
                lost += length
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(self.data[-self.left :][:length])
            self.at, self.left = self.at + length, self.left - length
        return lost


class Restore:
    """Restores the parts of a generation: section 5."""

    def __init__(self, store, dest, part):
        self.store, self.dest, self.part, self.links = store, dest, part, {}
        self.root, self.directories = os.geteuid() == 0, 0

    def read_entries(self, path, reference):
        """Return the entries of a directory; the top directory is named as its part."""
        stream, frames, entries, last = Stream(self.store, reference), io.BytesIO(), [], b""
        require(reference[2] <= 256 * MIB, "it has too many entries")
        require(not stream.copy(reference[2], frames), f"its entries are lost: {stream.reason}")
        frames.seek(0)
        owners = unpack(io.BytesIO(frames.read(int.from_bytes(frames.read(4), "little"))))
        require(owners[0] == 1, "it is of another version")
        while head := frames.read(4):
            *fields, extra = unpack(io.BytesIO(frames.read(int.from_bytes(head, "little"))))[:9]
            entry = Entry(*fields, *extra[:5])
            if not path:
                require(entry.name == b"" and entry.type == DIRECTORY, "the root of the tree is wrong")
                entry = entry._replace(name=self.part["name"].encode())
            require(not {*b"/\0"} & {*entry.name} and entry.name not in {b".", b".."}, "a name is hostile")
            require(entry.name > last, "its entries are not in order")
            require(entry.content != 1 or 0 < entry.size <= MIB, "a small file is too large")
            last = entry.name
            entries.append(entry)
        return entries

    def restore_directory(self, folder, path, reference):
        """Restore what a directory holds into an open one."""
        self.directories += 1
        require(self.directories <= self.part["files"] + 2, "the tree has too many directories")
        references = list(islice(self.store.references(*reference), self.part["files"] + 3))
        lost = [reason for kind, reason, _ in references if kind == LOST]
        require(not lost, f"its node is damaged: {lost and lost[0]}")
        entries = self.read_entries(path, references[0])
        small_size, end = sum(entry.size for entry in entries if entry.content == 1), 0
        expected = 1 + bool(small_size) + sum(entry.content == 2 for entry in entries)
        require(len(references) == expected, "it has too many references, or not enough")
        below = iter(references[1:])
        small = next(below) if small_size else (CHUNK, b"", 0)
        if small[2] != small_size:
            small = LOST, "the small-file stream has another length", small_size
        small = Stream(self.store, small)
        for entry in sorted(entries, key=lambda entry: entry.type == DIRECTORY):
            reference = next(below) if entry.content == 2 else None
            with reporting(os.path.join(path, entry.name)):
                small.copy(end - small.at, io.BytesIO())  # what a hard link, or a failure, has left
                end += entry.size if entry.content == 1 else 0
                self.restore_entry(folder, os.path.join(path, entry.name), entry, reference, small)

    def restore_entry(self, folder, path, entry, reference, small):
        """Create what an entry describes; its content is what `reference` names, or the next small file."""
        first = self.links.setdefault(tuple(entry.link), path) if entry.link else path
        with suppress(OSError):
            if first != path:
                os.link(first, entry.name, src_dir_fd=self.dest, dst_dir_fd=folder, follow_symlinks=False)
                return
        if entry.type == DIRECTORY:
            os.mkdir(entry.name, 0o700, dir_fd=folder)
            inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            with reporting(path):
                if reference:
                    self.restore_directory(inner, path, reference)
            os.close(inner)
        elif entry.type == FILE:
            extents = entry.extents or ([(0, entry.size)] if entry.content else [])
            length = sum(count for _, count in extents)
            require(not reference or reference[2] == length, "its stream has another length")
            stream = Stream(self.store, reference) if reference else small
            write_file(folder, path, entry.name, entry.size, extents, stream)
        elif entry.type == SYMLINK:
            os.symlink(entry.target, entry.name, dir_fd=folder)
        elif entry.type in {FIFO, SOCKET} or self.root:
            os.mknod(entry.name, entry.type << 12 | 0o600, entry.device, dir_fd=folder)
        else:
            say(f"{os.fsdecode(path)}: left out: only root can make a device")
            return
        self.set_metadata(folder, path, entry)

    def set_metadata(self, folder, path, entry):
        if self.root:
            os.chown(entry.name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        for name, value in entry.xattrs:
            try:
                os.setxattr(b"/proc/self/fd/%d/%s" % (folder, entry.name), name, value, follow_symlinks=False)
            except OSError as error:
                say(f"{os.fsdecode(path)}: the attribute {name} is left out: {error}")
        if entry.type != SYMLINK:
            set_id = self.root or entry.uid == os.geteuid()
            os.chmod(entry.name, entry.mode & (0o7777 if set_id else 0o1777), dir_fd=folder)
        os.utime(entry.name, ns=(entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=False)


def write_file(folder, path, name, size, extents, stream):
    """Create a file; its data is the next of the stream, zeros where that is lost."""
    flags, lost = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0
    with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
        file.truncate(size)
        for offset, count in extents:
            file.seek(offset)
            lost += stream.copy(count, file)
    with reporting(path):
        require(not lost, f"{lost} bytes are lost, zeros replace them: {lost and stream.reason}")


def list_generations(store):
    for (service, number), generation in sorted(store.generations().items()):
        moment = time.strftime("%F %T", time.gmtime(generation["time"] // 10**9))
        revision, host = generation["revision"] or "-", generation["host"]
        parts = [f"{part['name']} ({part['kind']}, {part['size']} bytes)" for part in generation["parts"]]
        say(f"{service} {number}  {moment}  {revision}  {host}  {', '.join(parts)}", sys.stdout)
    return 5 if damaged else 0


def restore(store, service, number, dest):
    generation = store.generations().get((service, int(number)))
    if not generation:
        say(f"rescue.py: there is no generation {number} of {service}")
        return 5 if damaged else 6
    try:
        os.makedirs(dest, 0o700, exist_ok=True)
        require(not os.listdir(dest), "it is not empty")
    except (OSError, ValueError) as error:
        say(f"rescue.py: cannot restore into {dest}: {error}")
        return 2
    store.open_sessions()
    for match in store.names("packs", "[0-9a-f]{64}"):
        with reporting("packs/" + match[0]):
            store.index_pack("packs/" + match[0])
    folder = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    for part in generation["parts"]:
        name, root = part["name"], part["root"] or (CHUNK, b"", 0)
        with reporting(name):
            if part["kind"] == "tree":
                Restore(store, folder, part).restore_directory(folder, b"", root)
            else:
                write_file(folder, name, name, root[2], [(0, root[2])], Stream(store, root))
    if os.geteuid():
        say("owners are left out: only root can set them")
    return 5 if damaged else 0


def main():
    if {"-h", "--help"} & {*sys.argv}:
        print(__doc__)
        return 0
    _, path, option, identity, *wanted = [*sys.argv, "", "", ""][: max(4, len(sys.argv))]
    if option != "--identity" or len(wanted) not in {0, 3} or not all(map(str.isdecimal, wanted[1:2])):
        print(__doc__, file=sys.stderr)
        return 2
    sys.setrecursionlimit(10**5)  # a directory may be deep
    try:
        store = Store(path, read_identity(identity))
    except Exception as error:
        say(f"rescue.py: {error} (identity file: {identity})")
        return 7
    return restore(store, *wanted) if wanted else list_generations(store)


if __name__ == "__main__":
    sys.exit(main())
