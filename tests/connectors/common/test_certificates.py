"""Dates of certificates, which are read from their bytes."""

import base64
from datetime import UTC, datetime

import pytest

from connectors.common.certificates import expiry_problem


def certificate(first, last):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(first).not_valid_after(last).sign(key, hashes.SHA256())


def pem(der):
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("first", "last"), [(1950, 1999), (1999, 2049), (2000, 2050), (2050, 2060), (2049, 9999)], ids=str
)
def test_dates_are_found_whether_years_have_two_or_four_digits(tmp_path, first, last):
    from cryptography.hazmat.primitives.serialization import Encoding

    begin, end = datetime(first, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(last, 6, 7, 8, 9, 10, tzinfo=UTC)
    path = tmp_path / "certificate.pem"
    path.write_text(pem(certificate(begin, end).public_bytes(Encoding.DER)))
    assert expiry_problem(path, begin) == expiry_problem(path, end) == ""
    early = f"not valid before {first}-01-02 03:04 UTC: is this machine's clock right?"
    assert expiry_problem(path, begin.replace(second=4)) == early
    assert expiry_problem(path, end.replace(second=11)) == f"expired on {last}-06-07 08:09 UTC: put a new one there"


def test_a_certificate_that_is_cut_short_is_an_error(tmp_path):
    path = tmp_path / "certificate.pem"
    path.write_text(pem(b"\x30\x82\x03\x05\x30\x82"))
    with pytest.raises(ValueError, match="cut short"):
        expiry_problem(path, datetime.now(UTC))
