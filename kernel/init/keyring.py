"""The data keys in the home, wrapped by what the user keeps: a key file, or a passphrase.

    python -m aios.kernel.init.keyring open CONFIG   the data keys to stdout, a Ring
    python -m aios.kernel.init.keyring rotate HOME   another data key, or another wrapping

A passphrase, if one is needed, comes by stdin (a Request). Errors go to stderr as the JSON of an
AiosError. It is a process of its own since agents are forked out of init, and would have all that
init ever knew.
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
from ..lib.encryption import Ring
from .home import lock_home
from .protocol import FATAL

SALT, NONCE = 16, bytes(12)  # each wrapping has a salt, so a key, of its own
N, R, P = 1 << 17, 8, 1  # of scrypt: 128 MiB, half a second
HELD = ("store", "journal", "index")  # folders with what is in clear if there are no keys


class Wrapped(msgspec.Struct):
    """`keys/data.json`"""

    salt: bytes
    n: Annotated[int, Meta(ge=2, le=1 << 20)]
    r: Annotated[int, Meta(ge=1, le=32)]
    p: Annotated[int, Meta(ge=1, le=16)]
    sealed: bytes
    checksum: int

    def sum(self) -> int:
        return zlib.crc32(msgspec.msgpack.encode((self.salt, self.n, self.r, self.p, self.sealed)))


class Request(msgspec.Struct):
    passphrase: str = ""
    new_passphrase: str = ""
    new_key_file: str = ""


def path_of(home: Path) -> Path:
    return home / "keys" / "data.json"


def wrap(ring: Ring, secret: bytes) -> Wrapped:
    wrapped = Wrapped(secrets.token_bytes(SALT), N, R, P, b"", 0)
    data = msgspec.msgpack.encode(ring)
    wrapped.sealed = _cipher(wrapped, secret).encrypt(NONCE, data, None)
    wrapped.checksum = wrapped.sum()
    return wrapped


def unwrap(wrapped: Wrapped, secret: bytes) -> Ring:
    """Raises KeyWrong."""
    try:
        data = _cipher(wrapped, secret).decrypt(NONCE, wrapped.sealed, None)
    except InvalidTag:
        raise KeyWrong("this is not the key that the home was encrypted with") from None
    return msgspec.msgpack.decode(data, type=Ring)


def _cipher(wrapped: Wrapped, secret: bytes) -> AESGCM:
    n, r, p = wrapped.n, wrapped.r, wrapped.p
    room = (1 << 20) + 128 * r * (n + p)
    return AESGCM(hashlib.scrypt(secret, salt=wrapped.salt, n=n, r=r, p=p, maxmem=room, dklen=32))


def read(home: Path) -> Wrapped | None:
    """None: there is none yet. Raises StoreDamaged."""
    path = path_of(home)
    try:
        wrapped = msgspec.json.decode(path.read_bytes(), type=Wrapped)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"{path} is damaged: {error}", "restore it from a backup") from error
    if wrapped.checksum != wrapped.sum():
        raise StoreDamaged(f"{path} is damaged", "restore it from a backup")
    return wrapped


def write(home: Path, wrapped: Wrapped) -> None:
    path = path_of(home)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    files.replace(path, msgspec.json.encode(wrapped))


def secret_of(config: Config, request: Request) -> bytes:
    """Raises KeyMissing."""
    name = config.key_file or os.environ.get("AIOS_KEY_FILE", "")
    if name:
        return read_key(config.path / name)
    if not request.passphrase:
        raise KeyMissing("this home is encrypted, and there is no key for it")
    return request.passphrase.encode()


def read_key(path: Path) -> bytes:
    """Raises KeyMissing."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise KeyMissing(f"cannot read the key file {path}: {error.strerror}") from error
    if not secret:
        raise KeyMissing(f"the key file {path} is empty")
    return secret


def unlock(config: Config, request: Request) -> Ring:
    """The keys of a home, made where it is a new one.

    Raises:
        KeyMissing, KeyWrong, StoreDamaged; BadInput: the setting is not what the home is.
    """
    home, wrapped = config.path, read(config.path)
    if not config.encrypt:
        raise BadInput(f"{home} is encrypted", "set encrypt = true in its config.toml")
    if wrapped is not None:
        return unwrap(wrapped, secret_of(config, request))
    if any(True for name in HELD for _ in (home / name).glob("*")):
        raise BadInput(
            f"{home} holds data, and no {path_of(home)}",
            "was that lost, restore it; if the data is in clear, `aios sto export --all`, "
            "begin a new home with encrypt = true, and `aios sto import`",
        )
    ring = Ring.new()
    write(home, wrap(ring, secret_of(config, request)))
    return ring


def rotate(config: Config, request: Request) -> Ring:
    """Add a data key, for all that is written from now on; wrap all of them anew.

    Raises:
        HomeBusy: a system runs there; BadInput: it is not encrypted; and as `unlock`.
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
        request = msgspec.json.decode(sys.stdin.buffer.read() or b"{}", type=Request)
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
