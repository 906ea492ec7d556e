"""Tokens, certificates, and which addresses may be listened on."""

import hashlib
import ssl
from pathlib import Path

import pytest

from real_robot.serve import auth
from vla.core.errors import GrasplineError, MissingAssetError


def test_a_token_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = auth.make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600 and len(bytes.fromhex(token)) == 32
    assert auth.read_token(path) == token and auth.make_token(path) != token


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    auth.make_token(path)
    path.chmod(0o640)
    with pytest.raises(GrasplineError, match="chmod 600"):
        auth.read_token(path)
    path.chmod(0o600)
    path.write_text("secret")
    with pytest.raises(GrasplineError, match="64 hexadecimal"):
        auth.read_token(path)
    with pytest.raises(MissingAssetError):
        auth.read_token(tmp_path / "none")


def test_the_fingerprint_is_that_of_the_certificate(tmp_path: Path) -> None:
    pin = auth.make_certificate(tmp_path / "c.pem", tmp_path / "k.pem", hosts=("robot.local", "192.168.1.9"))
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "c.pem").read_text())
    assert pin == hashlib.sha256(der).hexdigest()
    assert (tmp_path / "k.pem").stat().st_mode & 0o777 == 0o600
    auth.server_tls(tmp_path / "c.pem", tmp_path / "k.pem")
    auth.check_pin(der, pin.upper())
    with pytest.raises(GrasplineError, match="not the pinned"):
        auth.check_pin(der[:-1], pin)
    with pytest.raises(GrasplineError, match="not the pinned"):
        auth.check_pin(None, pin)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.9", "robot.local", "::"])
def test_beyond_loopback_needs_both(host: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for given in ({"token": None, "tls": tls}, {"token": "t", "tls": None}, {"token": None, "tls": None}):
        with pytest.raises(GrasplineError, match="insecure_lan"):
            auth.require_safe_host(host, insecure_lan=False, **given)
    auth.require_safe_host(host, token="t", tls=tls, insecure_lan=False)
    auth.require_safe_host(host, token=None, tls=None, insecure_lan=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"])
def test_loopback_needs_nothing(host: str) -> None:
    auth.require_safe_host(host, token=None, tls=None, insecure_lan=False)
