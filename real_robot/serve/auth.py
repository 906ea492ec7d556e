"""Who may talk to the robot: a token in a private file, TLS with a certificate of our own, pinned by its fingerprint.

What is special: an address beyond loopback is refused unless both are there, before a socket is opened. A certificate
that nobody signed says nothing about whom one talks to, so a client compares its SHA-256 and looks at no authority.
"""

import datetime
import hashlib
import hmac
import ipaddress
import os
import secrets
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vla.core.errors import GrasplineError, MissingAssetError

TOKEN_BYTES = 32
VALID_DAYS = 3650
_PRIVATE = 0o600


def make_token(path: Path) -> str:
    """Writes a new random token (64 hexadecimal digits) to a file that only its owner can read."""
    token = secrets.token_hex(TOKEN_BYTES)
    _write_private(path, token.encode() + b"\n")
    return token


def read_token(path: Path) -> str:
    """The token in `path`.

    Raises:
        MissingAssetError: there is no such file.
        GrasplineError: others can read it, or it is no token of `make_token`.
    """
    try:
        mode, text = path.stat().st_mode & 0o777, path.read_text("ascii", "replace").strip()
    except OSError as error:
        raise MissingAssetError(f"token file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise GrasplineError(f"token file {path} has mode {mode:o}, others may read it: chmod 600 {path}")
    if len(text) != 2 * TOKEN_BYTES or set(text) - set("0123456789abcdef"):
        raise GrasplineError(f"token file {path}: expected {2 * TOKEN_BYTES} hexadecimal digits")
    return text


def same_token(shown: str, token: str) -> bool:
    """Compares in a time that does not depend on how much is right."""
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), token.encode())


def make_certificate(certificate: Path, key: Path, *, hosts: tuple[str, ...]) -> str:
    """Writes a self-signed certificate for `hosts` (names or addresses) and its key; returns its fingerprint."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks on robots are off
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    _write_private(key, private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    certificate.write_bytes(built.public_bytes(pem))
    return fingerprint(built.public_bytes(serialization.Encoding.DER))


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate in DER, hexadecimal: what a client pins."""
    return hashlib.sha256(der).hexdigest()


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Raises MissingAssetError, GrasplineError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise GrasplineError(f"certificate {certificate}, key {key}: {error.reason or error}") from error
    except OSError as error:
        raise MissingAssetError(f"certificate {certificate}, key {key}: {error.strerror}") from error
    return context


def client_tls() -> ssl.SSLContext:
    """For `check_pin` after the handshake: the authority is not looked at, the fingerprint is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def check_pin(der: bytes | None, pin: str) -> None:
    """Raises GrasplineError unless the peer's certificate is the pinned one."""
    seen = fingerprint(der or b"")
    if not hmac.compare_digest(seen, pin.lower().replace(":", "")):
        raise GrasplineError(f"the server's certificate has SHA-256 {seen}, not the pinned {pin}: not the same server")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]").split("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def require_safe_host(host: str, *, token: str | None, tls: ssl.SSLContext | None, insecure_lan: bool) -> None:
    """Raises GrasplineError for an address that others can reach without a token and TLS."""
    missing = [name for name, given in (("token", token), ("TLS", tls)) if given is None]
    if not is_loopback(host) and missing and not insecure_lan:
        raise GrasplineError(
            f"host={host} can be reached from other machines and there is no {' and no '.join(missing)}: "
            "give both, or say insecure_lan=true and let anybody in the network drive the arm"
        )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_private(path: Path, data: bytes) -> None:
    """Never readable by others, not even between creation and chmod."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
