from __future__ import annotations

import base64
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hivenode.errors import Corrupted, NotFound, Refused
from hivenode.trust.identity import Identity, id_of, verify
from hivenode.trust.sealing import read_sealed, write_sealed


def test_the_id_is_the_hash_of_the_public_key() -> None:
    identity = Identity.create()
    raw = base64.b32decode(identity.node_id.upper())
    assert len(identity.public_key) == 32
    assert len(identity.node_id) == 32
    assert raw == hashlib.sha256(identity.public_key).digest()[:20]
    assert id_of(identity.public_key) == identity.node_id


def test_a_seed_gives_the_same_identity_and_another_seed_another() -> None:
    assert Identity.from_seed(b"a").node_id == Identity.from_seed(b"a").node_id
    assert Identity.from_seed(b"a").node_id != Identity.from_seed(b"b").node_id


def test_signatures_hold_for_the_data_and_the_key_they_were_made_with() -> None:
    one, other = Identity.create(), Identity.create()
    signature = one.sign(b"data")
    assert len(signature) == 64
    assert verify(one.public_key, signature, b"data")
    assert not verify(one.public_key, signature, b"date")
    assert not verify(other.public_key, signature, b"data")
    assert not verify(one.public_key, signature[:-1], b"data")
    assert not verify(b"short", signature, b"data")


def test_the_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key.pem"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(path).node_id == first.node_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == first.private_pem()
    assert [entry.name for entry in path.parent.iterdir()] == ["key.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(Refused) as caught:
        Identity.load_or_create(path)
    assert str(path) in caught.value.sentence
    assert f"chmod 600 {path}" in caught.value.fix


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_named_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    write_sealed(path, content)
    with pytest.raises(Corrupted, match=r"key\.pem"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = tmp_path / "key.pem"
    write_sealed(
        path, generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(Corrupted, match="not Ed25519"):
        Identity.load_or_create(path)


def test_reading_a_sealed_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing"):
        read_sealed(tmp_path / "nothing")


def test_a_full_disk_leaves_the_old_content_and_no_scratch_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_sealed(path, b"old")
    program = (
        "import pathlib, sys\n"
        "from hivenode.errors import Exhausted\n"
        "from hivenode.trust.sealing import write_sealed\n"
        "try:\n    write_sealed(pathlib.Path(sys.argv[1]), bytes(100_000))\n"
        "except Exhausted as error:\n    print(error.sentence)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert str(tmp_path) in done.stdout
    assert "full" in done.stdout
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
