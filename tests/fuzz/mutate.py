"""Seeds in, hostile bytes out. One number is one input: whoever has the number and the seeds has the bytes.

The mutations know what the formats are made of: numbers of every width and byte order, lengths before what they count,
varints, JSON and text. Which of them makes sense where is not known; most bytes are some of it somewhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

MAX_BYTES = 1 << 20  # of an input
WINDOW = 4096  # bytes of a large input in which tokens are looked for
PART = re.compile(rb"\n@@([\w.-]{1,120})@@\n")  # before each file of an input that is several
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
STRING = re.compile(rb'"(?:[^"\\\n]|\\.)*"')
VALUE = re.compile(rb'"(?:[^"\\\n]|\\.)*"(?!\s*:)|-?\d+(?:\.\d+)?|true|false|null|\[\]|\{\}')
MEMBER = re.compile(rb'"(?:[^"\\\n]|\\.)*"\s*:\s*(?:"(?:[^"\\\n]|\\.)*"|-?[\w.+-]+|\[[^\[\]{}]*\]|\{[^{}]*\})')
NUMBERS = (
    b"0", b"-0", b"-1", b"1", b"2", b"0.5", b"-0.0", b"1e308", b"1e309", b"-1e999", b"1e-400", b"NaN", b"Infinity",
    b"-Infinity", b"127", b"128", b"255", b"256", b"32768", b"65536", b"2147483647", b"2147483648", b"-2147483649",
    b"4294967296", b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616",
    b"1" + b"0" * 39, b"9" * 300, b"7" * 4301, b"true", b"0x10", b"01", b"1_000",
)  # fmt: skip
STRINGS = (
    b'""', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\\u001b[31mred\\u0007"', b'"\\n\\r\\t"', b'"\\ufeff"',
    b'"../../etc/passwd"', b'"/etc/passwd"', b'"C:\\\\x"', b'"."', b'".."', b'"a/b"', b'"%s%n{0}"', b'"\\u202e"',
    b'"__proto__"', b'"\xed\xa0\x80"', b'"\xff\xfe"', b'"' + b"a" * 5000 + b'"', b'"' + b"(a+)+$" * 3 + b'"', b'"\\x"',
    '"１２٣"'.encode(), '"ſK"'.encode(),
)  # fmt: skip
VALUES = (b"null", b"true", b"false", b"[]", b"{}", b"[[]]", b'[{"":{}}]', b'{"":null}')
TEXTS = (
    b"\0", b"\n", b"\r\n", b"\xef\xbb\xbf", b"---\n", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"#", b": ", b"- ", b" ",
    b",", b'"', b"\\", b"/", b"..", b"\xe2\x80\xa8", b"PAR1", b"PK\x05\x06", b"GGUF", b".safetensors",
)  # fmt: skip

Operation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """The input of that number: a seed, changed at one to some dozen places."""
    rng = random.Random(number)
    data = rng.choice(seeds)
    for _ in range(1 + min(int(rng.expovariate(0.4)), 24)):
        start, stop = _file(data, rng) if rng.random() < 0.9 else (0, len(data))
        data = (data[:start] + rng.choice(OPERATIONS)(data[start:stop], rng, seeds) + data[stop:])[:MAX_BYTES]
    return data


def _file(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Where one of the files is that an input consists of, without its name; everything of an input that is one."""
    names = [match.span() for match in PART.finditer(data)]
    if not names:
        return 0, len(data)
    number = rng.randrange(len(names))
    return names[number][1], names[number + 1][0] if number + 1 < len(names) else len(data)


# --- bytes ---


def _place(data: bytes, rng: random.Random) -> int:
    """Somewhere; the ends of a file, where headers and footers are, more often than the middle."""
    near = rng.randrange(min(len(data), 512) + 1)
    return rng.choice((near, len(data) - near, rng.randrange(len(data) + 1)))


def _run(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, rng.randrange(1, 64), rng.randrange(1, 4096))))


def flip_bits(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[min(_place(data, rng), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_byte(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def truncate(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] if rng.random() < 0.8 else data[at:]


def remove(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, stop = _run(data, rng)
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, stop = _run(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 16, 255)) + data[stop:]


def insert_text(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice((*TEXTS, rng.randbytes(rng.randrange(1, 16)))) + data[at:]


def splice(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """The beginning of this and the end of another, or a piece of another inside."""
    other = rng.choice(seeds)
    if rng.random() < 0.5:
        return data[: _place(data, rng)] + other[_place(other, rng) :]
    start, stop = _run(other, rng)
    at, gone = _run(data, rng)
    return data[:at] + other[start:stop] + data[gone if rng.random() < 0.5 else at :]


# --- numbers in bytes ---


def boundary(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """A number of one to eight bytes becomes one of those at which something changes."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "little", "big"))
    at = _place(data, rng)
    at -= at % width if rng.random() < 0.5 else 0
    bits = 8 * width
    now = int.from_bytes(data[at : at + width], order)
    exact = 1 << rng.randrange(bits)
    values = (0, 1, (1 << bits) - 1, (1 << bits - 1) - 1, 1 << bits - 1, exact, exact - 1, len(data), now + 1, now - 1)
    value = rng.choice((*values, now * 2, now // 2, len(data) - at)) % (1 << bits)
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


def length_prefix(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """A number that could be a length of what follows it is made wrong, or right after what follows has changed."""
    width = rng.choice((4, 8))
    start = _place(data, rng)
    for at in range(start, min(len(data) - width, start + WINDOW)):
        now = int.from_bytes(data[at : at + width], "little")
        if 0 < now <= len(data) - at - width:
            body = data[at + width : at + width + now]
            if rng.random() < 0.5:  # and the text is another
                body = rng.choice((b"", body * 2, body[:-1], rng.choice(TEXTS), rng.randbytes(now % 64)))
                size = len(body)
            else:
                huge = rng.randrange(1 << 8 * width)
                size = rng.choice((0, now + 1, now - 1, len(data), (1 << 8 * width) - 1, 1 << 8 * width - 1, huge))
            written = (size % (1 << 8 * width)).to_bytes(width, "little")
            return data[:at] + written + body + data[at + width + now :]
    return data


def varint(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """A varint becomes another one, of any length up to what no reader takes."""
    at = _place(data, rng)
    end = at
    while end < len(data) and data[end] & 0x80 and end - at < 10:
        end += 1
    exact = 1 << rng.randrange(70)
    value = rng.choice((0, 1, 127, 128, exact, exact - 1, (1 << 32) - 1, (1 << 63), (1 << 64) - 1, len(data)))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    padding = b"\x80" * rng.choice((0, 0, 0, 1, 10))  # longer than needed
    return data[:at] + padding + bytes(out) + data[end + 1 :]


# --- JSON and text ---


def _token(pattern: re.Pattern[bytes], data: bytes, rng: random.Random) -> tuple[int, int]:
    """Where a token is; an empty run if none is near."""
    start = 0 if len(data) <= WINDOW else max(0, _place(data, rng) - WINDOW // 2)
    found = [match.span() for match in pattern.finditer(data, start, start + WINDOW)]
    if not found:
        at = _place(data, rng)
        return at, at
    return rng.choice(found)


def json_number(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, stop = _token(NUMBER, data, rng)
    return data[:start] + rng.choice(NUMBERS) + data[stop:]


def json_string(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start, stop = _token(STRING, data, rng)
    return data[:start] + rng.choice(STRINGS) + data[stop:]


def json_value(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """A value becomes one of another kind, often one that stands elsewhere in the text."""
    start, stop = _token(VALUE, data, rng)
    other = slice(*_token(VALUE, data, rng))
    value = rng.choice((rng.choice(VALUES), rng.choice(NUMBERS), rng.choice(STRINGS), data[other]))
    return data[:start] + value + data[stop:]


def json_nest(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """A value inside of many lists or objects, closed or not."""
    start, stop = _token(VALUE, data, rng)
    depth = rng.choice((1, 2, 8, 64, 400, 900, 5000, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"text_config":', b"}")))
    depth = min(depth, MAX_BYTES // (2 * len(opening)))
    return data[:start] + opening * depth + data[start:stop] + closing * rng.choice((depth, depth, 0)) + data[stop:]


def json_member(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A member twice, gone, or one of another text."""
    start, stop = _token(MEMBER, data, rng)
    member, what = data[start:stop], rng.randrange(3)
    if what == 0:
        return data[:stop] + b"," + member + data[stop:]
    if what == 1:
        return data[:start] + data[stop + (data[stop : stop + 1] == b",") :]
    other = rng.choice(seeds)
    return data[:stop] + b"," + other[slice(*_token(MEMBER, other, rng))] + data[stop:]


def line(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """A line somewhere else, or many times."""
    lines = data.split(b"\n", 1000)
    taken = rng.choice(lines)
    lines.insert(rng.randrange(len(lines) + 1), b"\n".join([taken] * rng.choice((1, 1, 100))))
    return b"\n".join(lines)


OPERATIONS: tuple[Operation, ...] = (
    flip_bits, set_byte, truncate, remove, repeat, insert_text, splice, boundary, boundary, length_prefix, varint,
    json_number, json_number, json_string, json_value, json_nest, json_member, line,
)  # fmt: skip
