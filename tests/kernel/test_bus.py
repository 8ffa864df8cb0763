"""What our connection changes of nats-py's, it changes in speed alone."""

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from kernel.bus import LeanClient

LINES = st.lists(
    st.one_of(
        st.binary(max_size=30).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")),
        st.tuples(
            st.from_regex(rb"[A-Za-z-]{1,12}", fullmatch=True), st.sampled_from([b":", b": ", b":\t", b" : "])
        ).map(lambda pair: pair[0] + pair[1] + b"a value, with: colon"),
    ),
    max_size=8,
)


@given(LINES)
def test_headers_are_read_as_nats_py_reads_them(lines: list[bytes]) -> None:
    raw = b"\r\n".join(lines) + b"\r\n\r\n"

    ours = LeanClient._parse_header_lines(raw)  # pyright: ignore[reportPrivateUsage] - the one thing that is ours
    theirs = Client._parse_header_lines(raw)  # pyright: ignore[reportPrivateUsage] - what it is measured against
    assert ours == theirs
