"""Certificates read and told, contexts chosen by name, material in sealed memory, files watched."""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import os
import ssl
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from support.tls import Authority, replace, serial

from procmgr.arbiter.certificates import Certificates
from procmgr.arbiter.renewal import Renewal
from procmgr.config.tls import TLSSettings
from procmgr.errors import ConfigError
from procmgr.tls import Certificate, Contexts, Material, Options, Pair

KEY = ec.generate_private_key(ec.SECP256R1())
OIDS = [NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.LOCALITY_NAME, NameOID.DOMAIN_COMPONENT]
TEXT = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1, max_codepoint=0x3FF), min_size=1, max_size=20)


def make(subject, *, names=(), end=dt.datetime(2049, 12, 31, 23, 59, 58, tzinfo=dt.UTC)):
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(end)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def read(certificate):
    from cryptography.hazmat.primitives.serialization import Encoding

    return Certificate.read(certificate.public_bytes(Encoding.DER))


# --- what a certificate says --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(OIDS), TEXT), min_size=1, max_size=4))
def test_a_subject_is_written_as_rfc_4514_says(parts):
    parts = [(oid, text if oid != NameOID.DOMAIN_COMPONENT else "dc") for oid, text in parts]
    name = x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])
    written = read(make(name)).subject
    assert written == name.rfc4514_string()
    assert x509.Name.from_rfc4514_string(written) == name


def test_an_attribute_without_a_registered_name_is_shown_as_it_is_encoded():
    name = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b")])
    assert read(make(name)).subject == "1.2.840.113549.1.9.1=#1603614062"


def test_parts_of_one_rank_are_joined():
    both = [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "b")]
    name = x509.Name([x509.RelativeDistinguishedName(both)])
    assert set(read(make(name)).subject.split("+")) == {"CN=a", "O=b"}


@pytest.mark.parametrize("year", [2049, 2050, 9999])
def test_an_end_is_read_in_both_forms_of_time(year):
    end = dt.datetime(year, 3, 4, 5, 6, 7, tzinfo=dt.UTC)
    found = read(make(x509.Name([]), end=end))
    assert found.expires == end.timestamp()


def test_the_names_are_those_of_hosts_in_lower_case():
    import ipaddress

    names = [x509.DNSName("A.test"), x509.IPAddress(ipaddress.ip_address("::1")), x509.DNSName("*.b.test")]
    found = read(make(x509.Name([]), names=names))
    assert found.names == ("a.test", "*.b.test")
    assert str(found) == "a.test and 1 more name"


@given(st.binary(max_size=64))
def test_what_is_no_certificate_is_a_value_error_and_nothing_else(data):
    with pytest.raises(ValueError):  # noqa: PT011 - any of its texts
        Certificate.read(data)


def test_a_certificate_that_is_cut_anywhere_or_has_a_byte_changed_is_read_or_a_value_error():
    from cryptography.hazmat.primitives.serialization import Encoding

    der = make(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]), names=[x509.DNSName("a.test")]).public_bytes(
        Encoding.DER
    )
    for place in range(len(der)):
        with pytest.raises(ValueError):  # noqa: PT011 - any of its texts
            Certificate.read(der[:place])
        for byte in (0, 0x7F, 0xFF):
            try:
                Certificate.read(der[:place] + bytes([byte]) + der[place + 1 :])
            except ValueError:
                continue


# --- contexts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def contexts(authority):
    """Return a function that makes contexts of leaves."""
    opened = []

    def make(*leaves, **more):
        files = [authority.write(str(number), leaf) for number, leaf in enumerate(leaves)]
        options = Options(pairs=tuple(Pair(each.certificate, each.key) for each in files), **more)
        material = Material.read(options.pairs, options.authorities)
        opened.append(material)
        return Contexts(options, material)

    yield make
    for material in opened:
        material.close()


def handshake(front, client, name, session=None):
    """Do a handshake in memory; return the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    other = front.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    with suppress(ssl.SSLWantReadError):
        one.read(1)  # the tickets of TLS 1.3
    return one


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("a.test", 0),
        ("A.TEST", 0),
        ("b.test", 1),
        ("x.b.test", 1),
        ("exact.b.test", 2),
        ("y.x.b.test", 0),
        ("unknown.test", 0),
        (None, 0),
    ],
)
def test_the_name_chooses_and_the_first_is_for_all_others(authority, contexts, asked, chosen):
    leaves = [
        authority.issue("a.test"),
        authority.issue("b.test", "*.b.test"),
        authority.issue("exact.b.test", "a.test"),
    ]
    client = authority.client()
    client.check_hostname = False
    connection = handshake(contexts(*leaves).front, client, asked)
    assert connection.getpeercert(binary_form=True) == serial(leaves[chosen])


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_session_outlives_a_change_of_the_certificate_and_its_type_of_key(authority, contexts, version):
    made, client = contexts(authority.issue("a.test")), authority.client(version=version)
    first = handshake(made.front, client, "a.test")
    fresh = authority.issue("a.test", rsa=True)
    files = authority.write("fresh", fresh)
    material = Material.read((Pair(files.certificate, files.key),), None)
    made.use(material.pairs)
    material.close()
    assert handshake(made.front, client, "a.test", first.session).session_reused
    assert handshake(made.front, client, "a.test").getpeercert(binary_form=True) == serial(fresh)


def test_pairs_that_cannot_be_used_leave_what_is_in_use(authority, contexts):
    leaf = authority.issue("a.test")
    made = contexts(leaf)
    one, other = authority.write("one", authority.issue("a.test")), authority.write("other", authority.issue("a.test"))
    material = Material.read((Pair(one.certificate, other.key),), None)
    with pytest.raises(ConfigError, match="does not hold the key"):
        made.use(material.pairs)
    material.close()
    assert handshake(made.front, authority.client(), "a.test").getpeercert(binary_form=True) == serial(leaf)


def test_old_versions_and_renegotiation_are_off(authority, contexts):
    front = contexts(authority.issue("a.test")).front
    assert front.minimum_version is ssl.TLSVersion.TLSv1_2
    assert front.options & ssl.OP_NO_RENEGOTIATION
    assert front.options & ssl.OP_NO_COMPRESSION


# --- material -----------------------------------------------------------------------------------------------------


def test_material_is_sealed_and_kept_from_other_programs(authority):
    files = authority.write("site", authority.issue("a.test"))
    material = Material.read((Pair(files.certificate, files.key),), None)
    (fd,) = material.pairs
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    assert not os.get_inheritable(fd)
    material.close()


def test_nothing_is_left_open_where_one_of_several_cannot_be_kept(authority, monkeypatch):
    files = authority.write("site", authority.issue("a.test"))
    made = []
    real = os.memfd_create

    def create(*args):
        if made:
            raise OSError(errno.EMFILE, "too many")
        made.append(real(*args))
        return made[0]

    monkeypatch.setattr(os, "memfd_create", create)
    with pytest.raises(OSError, match="too many"):
        Material.read((Pair(files.certificate, files.key),) * 2, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])


# --- files that change --------------------------------------------------------------------------------------------


@pytest.fixture
def watched(authority, tmp_path):
    files = authority.write("site", authority.issue("a.test"))
    settings = TLSSettings(ssl_certfile=(str(files.certificate),), ssl_keyfile=(str(files.key),))
    certificates = Certificates.open(settings, tmp_path)
    yield files, certificates
    certificates.close()


def test_a_change_is_used_when_the_files_have_rested(authority, watched):
    _, certificates = watched
    assert certificates.look() is None
    fresh = authority.issue("a.test")
    authority.write("site", fresh)
    assert certificates.look() is None, "the key may be on its way"
    pairs = certificates.look()
    assert pairs is not None
    assert certificates.contexts.default.certificate.pem.encode() == fresh.cert_chain_pems[0].bytes()
    assert certificates.look() is None


def test_a_change_that_changes_nothing_is_no_change(watched):
    files, certificates = watched
    replace(files.key, files.key.read_bytes())
    assert [certificates.look() for _ in range(3)] == [None, None, None]


def test_what_cannot_be_used_is_said_once_and_what_comes_then_is_used(authority, watched):
    files, certificates = watched
    other = authority.issue("a.test")
    replace(files.key, other.private_key_pem.bytes())
    assert certificates.look() is None
    with pytest.raises(ConfigError):
        certificates.look()
    assert certificates.look() is None
    authority.write("site", other)
    certificates.look()
    assert certificates.look() is not None


def test_a_new_set_of_authorities_needs_no_files_at_an_upgrade(authority, tmp_path):
    files = authority.write("site", authority.issue("a.test"))
    settings = TLSSettings(
        ssl_certfile=(str(files.certificate),),
        ssl_keyfile=(str(files.key),),
        ssl_ca_certs=str(authority.file),
        ssl_cert_reqs="required",
    )
    first = Certificates.open(settings, tmp_path)
    for each in (files.certificate, files.key, authority.file):
        each.unlink()
    second = Certificates.adopt(first.hand_over(), settings, tmp_path)
    assert second.contexts.certificates == first.contexts.certificates
    assert second.contexts.front.verify_mode is ssl.CERT_REQUIRED
    assert second.contexts.default.cert_store_stats()["x509_ca"] == 1
    first.close()


@pytest.mark.parametrize(
    ("days", "texts"),
    [
        ([40.0, 29.0, 20.0, 6.0, 2.0, 0.5, 0.1, -0.1, -3.0], ["29 days", "6 days", "12 hours", "expired"]),
        ([0.5], ["12 hours"]),
    ],
)
def test_each_level_of_an_approaching_end_is_said_once(watched, monkeypatch, caplog, days, texts):
    _, certificates = watched
    (certificate,) = certificates.contexts.certificates

    class Plan:
        pass

    plan = Plan()
    plan.certificates = certificates
    renewal = Renewal(plans=lambda: {1: plan}, send=lambda *_: None)
    for left in days:
        monkeypatch.setattr("procmgr.arbiter.renewal.time.time", lambda left=left: certificate.expires - left * 86_400)
        renewal.look()
        renewal.look()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(texts)
    assert all(text in line for text, line in zip(texts, said, strict=True))
