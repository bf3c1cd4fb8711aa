"""Keep the data keys of a home, wrapped by a key file or a passphrase of the user.

    python -m aios.kernel.init.keyring open CONFIG   print the data keys, a KeyRing
    python -m aios.kernel.init.keyring rotate HOME   add a data key, or change the wrapping

A passphrase comes by stdin (a KeyRequest). Errors go to stderr as the JSON of an AiosError. This is
a process of its own, since agents are forked out of init and inherit all that init ever knew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import zlib
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta

from aios.syscalls.errors import AiosError, BadInput, KeyMissing, KeyWrong, StoreDamaged

from ..config import Config, load
from ..lib import files
from ..lib.encryption import KeyRing
from .home import lock_home
from .protocol import FATAL

SALT_BYTES, NONCE = 16, bytes(12)  # the key is used once: each wrapping has a new salt
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 17, 8, 1  # 128 MiB of memory, half a second
DATA_FOLDERS = ("store", "journal", "index")  # in clear where a home has no keys


class WrappedRing(msgspec.Struct):
    """The file `keys/data.json`."""

    salt: bytes
    n: Annotated[int, Meta(ge=2, le=1 << 20)]
    r: Annotated[int, Meta(ge=1, le=32)]
    p: Annotated[int, Meta(ge=1, le=16)]
    sealed: bytes
    checksum: int

    def sum(self) -> int:
        return zlib.crc32(msgspec.msgpack.encode((self.salt, self.n, self.r, self.p, self.sealed)))


class KeyRequest(msgspec.Struct):
    """The passphrases and key files that a person gave."""

    passphrase: str = ""
    new_passphrase: str = ""
    new_key_file: str = ""


def path_of(home: Path) -> Path:
    return home / "keys" / "data.json"


def wrap(ring: KeyRing, secret: bytes) -> WrappedRing:
    wrapped = WrappedRing(secrets.token_bytes(SALT_BYTES), SCRYPT_N, SCRYPT_R, SCRYPT_P, b"", 0)
    data = msgspec.msgpack.encode(ring)
    wrapped.sealed = _cipher(wrapped, secret).encrypt(NONCE, data, None)
    wrapped.checksum = wrapped.sum()
    return wrapped


def unwrap(wrapped: WrappedRing, secret: bytes) -> KeyRing:
    """Decrypt the data keys. Raises KeyWrong."""
    try:
        data = _cipher(wrapped, secret).decrypt(NONCE, wrapped.sealed, None)
    except InvalidTag:
        raise KeyWrong("this is not the key that the home was encrypted with") from None
    return msgspec.msgpack.decode(data, type=KeyRing)


def _cipher(wrapped: WrappedRing, secret: bytes) -> AESGCM:
    n, r, p = wrapped.n, wrapped.r, wrapped.p
    room = (1 << 20) + 128 * r * (n + p)
    return AESGCM(hashlib.scrypt(secret, salt=wrapped.salt, n=n, r=r, p=p, maxmem=room, dklen=32))


def read(home: Path) -> WrappedRing | None:
    """Read the wrapped keys of a home; None if it has none. Raises StoreDamaged."""
    path = path_of(home)
    try:
        wrapped = msgspec.json.decode(path.read_bytes(), type=WrappedRing)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"{path} is damaged: {error}", "restore it from a backup") from error
    if wrapped.checksum != wrapped.sum():
        raise StoreDamaged(f"{path} is damaged", "restore it from a backup")
    return wrapped


def write(home: Path, wrapped: WrappedRing) -> None:
    path = path_of(home)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    files.replace(path, msgspec.json.encode(wrapped))


def secret_of(config: Config, request: KeyRequest) -> bytes:
    """Return the key file's contents or the passphrase. Raises KeyMissing."""
    name = config.key_file or os.environ.get("AIOS_KEY_FILE", "")
    if name:
        return read_key(config.path / name)
    if not request.passphrase:
        raise KeyMissing("this home is encrypted, and there is no key for it")
    return request.passphrase.encode()


def read_key(path: Path) -> bytes:
    """Read a key file. Raises KeyMissing."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise KeyMissing(f"cannot read the key file {path}: {error.strerror}") from error
    if not secret:
        raise KeyMissing(f"the key file {path} is empty")
    return secret


def unlock(config: Config, request: KeyRequest) -> KeyRing:
    """Return the data keys of a home; a new home gets new ones.

    Raises:
        KeyMissing: there is no key file and no passphrase.
        KeyWrong: they are not those of this home.
        StoreDamaged: the file of the data keys is damaged.
        BadInput: the setting `encrypt` does not fit the home.
    """
    home, wrapped = config.path, read(config.path)
    if not config.encrypt:
        raise BadInput(f"{home} is encrypted", "set encrypt = true in its config.toml")
    if wrapped is not None:
        return unwrap(wrapped, secret_of(config, request))
    if any(True for name in DATA_FOLDERS for _ in (home / name).glob("*")):
        raise BadInput(
            f"{home} holds data, and no {path_of(home)}",
            "was that lost, restore it; if the data is in clear, `aios sto export --all`, "
            "begin a new home with encrypt = true, and `aios sto import`",
        )
    ring = KeyRing.new()
    write(home, wrap(ring, secret_of(config, request)))
    return ring


def rotate(config: Config, request: KeyRequest) -> KeyRing:
    """Add a data key for all that is written from now on, and wrap all keys anew.

    Raises:
        HomeBusy: a system runs there.
        BadInput: the home is not encrypted.
        KeyMissing, KeyWrong, StoreDamaged: as `unlock`.
    """
    if read(config.path) is None:  # before the lock, which would make a home that is not there
        raise BadInput(f"{config.path} is not encrypted", "docs/security.md says how to begin")
    with lock_home(config.path):
        wrapped = read(config.path)
        assert wrapped is not None, "it stays, once it is there"
        secret = secret_of(config, request)
        ring = unwrap(wrapped, secret).rotated()
        if request.new_key_file:
            secret = read_key(Path(request.new_key_file))
        elif request.new_passphrase:
            secret = request.new_passphrase.encode()
        write(config.path, wrap(ring, secret))
    return ring


def main() -> int:
    command, what = sys.argv[1:]
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=KeyRequest)
        if command == "open":
            ring = unlock(msgspec.json.decode(what, type=Config), request)
        else:
            ring = rotate(load(Path(what), {}), request)
    except AiosError as error:
        print(json.dumps(error.to_wire()), file=sys.stderr)
        return FATAL
    if command == "open":
        sys.stdout.buffer.write(msgspec.msgpack.encode(ring))
    return 0


if __name__ == "__main__":
    sys.exit(main())
