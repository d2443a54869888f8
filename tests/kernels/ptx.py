"""Runs PTX, what Triton's compiler makes of a kernel, on NumPy arrays: no GPU, no driver, no assembler.

:func:`launch` executes a grid of programs, many at a time: every register is an array with one element for each of
their threads, and threads that part ways at a branch are run by the smallest program counter until they meet again.
It raises :class:`PtxError` where a GPU would do wrong, or might:

- an access outside of the launch's tensors (each lies a megabyte from the next), or not aligned to its width;
- a read of global or shared memory that nothing has written, of what another program of the launch writes, or of a
  register before it is set; two different values written to one place by one launch;
- shared memory that two warps touch, one of them writing, without a barrier between;
- a barrier or shuffle that a part of a program, or of a warp, reaches.

Not modelled: time; the order of memory accesses beyond barriers; lanes of a warp that run apart, which must not
exchange data (of those that store to one place of shared memory at once the last one's value stays); asynchronous
copies, matrix units and clusters, which these kernels do not use. The order of a launch's programs is the caller's.
Approximate instructions are exact here, and ``fma`` of float32 rounds twice, the first time to float64. An instruction
or modifier that is not in the tables below is a :class:`PtxError` that names it.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
_LANES = 1 << 15  # threads that run at a time
_GAP = 1 << 20  # bytes between tensors


class PtxError(Exception):
    """What the hardware would do wrong, might do wrong, or what this module does not know."""


# --- reading --------------------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    """``@guard op.op.op operands``, and of which line of which file it is made."""

    guard: str
    op: tuple[str, ...]
    operands: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        guard = self.guard and f"@{self.guard} "
        return f"{guard}{'.'.join(self.op)} {', '.join(self.operands)} {self.source}".strip()


class Program(NamedTuple):
    """A kernel: its threads, the names of its parameters, its code, and where its labels and registers are."""

    threads: int
    parameters: tuple[tuple[str, str], ...]
    code: list[Instruction]
    labels: dict[str, int]
    widths: dict[str, int]  # bits of the registers whose name begins so
    written: frozenset[str]


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The one kernel of a module."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', text, re.MULTILINE))
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*\.loc\s+(\d+)\s+(\d+)[^\n]*", r".loc \1 \2;", text, flags=re.MULTILINE)
    entry = re.search(r"\.entry\s+\w+\((.*?)\)(.*?)\{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    assert entry is not None, "a module without a kernel"
    parameters = tuple((line.split()[-1], line.split()[1][1:]) for line in entry[1].split(",") if line.strip())
    threads = re.search(r"\.reqntid\s+(\d+)", entry[2])
    assert threads is not None
    code: list[Instruction] = []
    labels, widths, source = {}, {}, ""
    for statement in entry[3].split(";"):
        statement = statement.strip("{} \t\n")  # the scope of an inline assembly
        while label := re.match(r"([$\w]+):\s*", statement):
            labels[label[1]] = len(code)
            statement = statement[label.end() :].strip("{} \t\n")
        if declared := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL):
            bits = 1 if declared[1] == "pred" else _bits(declared[1])
            widths |= {name.strip().split("<")[0]: bits for name in declared[2].split(",")}
        elif located := re.match(r"\.loc (\d+) (\d+)", statement):
            source = f"({files.get(located[1])}:{located[2]})"
        elif statement and statement[0] != ".":
            parts = re.fullmatch(r"(?:@(!?%?\w+)\s+)?(\S+)\s*(.*)", statement, re.DOTALL)
            assert parts is not None
            guard, op, operands = parts.groups()
            closed = operands.count("{") - operands.count("}")  # strip() took the last one's brace
            listed = re.findall(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,\s]+)", operands + "}" * closed)
            code.append(Instruction(guard or "", tuple(op.split(".")), tuple(listed), source))
    written = frozenset(name for i in code if i.operands for name in re.findall(r"[%\w]+", i.operands[0]))
    return Program(int(threads[1]), parameters, code, labels, widths, written)


def _bits(kind: str) -> int:
    """Of a type: ``b32``, ``bf16x2``."""
    digits = re.fullmatch(r"(?:b|u|s|f|bf)(\d+)(x2)?", kind)
    if digits is None:
        raise PtxError(f"unknown type {kind}")
    return int(digits[1]) * (2 if digits[2] else 1)


@functools.cache
def _dtype(kind: str) -> Any:
    family = _SIGNED if kind[0] == "s" else _FLOAT if kind[0] == "f" and "x" not in kind else _UNSIGNED
    return np.dtype(family[_bits(kind)])


@functools.cache
def _immediate(text: str, kind: str) -> Any:
    """A number in the code, as a scalar of a type; None where the text is no number."""
    if text[:2] in ("0f", "0d", "0F", "0D"):
        as_float = np.array(int(text[2:], 16), _UNSIGNED[4 * len(text[2:])]).view(_FLOAT[4 * len(text[2:])])
        return as_float.astype(_dtype(kind))[()] if kind[0] == "f" else as_float.view(_dtype(kind))[()]
    if not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return None
    bits = _bits(kind)
    return np.array(int(text.rstrip("U"), 0) & (1 << bits) - 1, _UNSIGNED[bits]).view(_dtype(kind))[()]


# --- memory ---------------------------------------------------------------------------------------------------------

Extent = tuple[int, int]  # the host's address of a tensor's first byte, and of the one after its last
_UNWRITTEN, _WRITTEN = 1, 2  # by this launch; 0: before it


class Memory:
    """A launch's tensors, at addresses of their own. What of them is `unwritten` may not be read before it is written.

    Tensors that overlap on the host lie together here, too.
    """

    def __init__(self, extents: Iterable[Extent], unwritten: Iterable[tuple[int, Array]] = ()) -> None:
        """unwritten: the host's address of memory, and for each of its bytes whether it is not yet written."""
        ranges: list[list[int]] = []
        for begin, end in sorted(extents):
            if ranges and begin < ranges[-1][1]:
                ranges[-1][1] = max(end, ranges[-1][1])
            elif end > begin:
                ranges.append([begin, end])
        self.host = np.array([begin for begin, _ in ranges], np.int64)
        self.size = np.array([end - begin for begin, end in ranges], np.int64)
        starts, at, kept = [], 1 << 40, 0  # 32 bits of an address do not do
        for begin, end in ranges:
            starts.append((at + begin % 256, kept + begin % 256))
            at, kept = at + (end - begin + _GAP) // 256 * 256, kept + (end - begin + 511) // 256 * 256
        self.start = np.array([at for at, _ in starts], np.int64)
        self.state_start = np.array([at for _, at in starts], np.int64)
        self.state = np.zeros(kept, np.uint8)
        self.window = int(self.host[0]) // 256 * 256 if ranges else 0
        length = (int(self.host[-1] + self.size[-1]) - self.window + 255) // 256 * 256 if ranges else 0
        self.data = np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(self.window))
        self.unwritten = [(address, flags) for address, flags in unwritten]
        for state, flags in self._states():
            state[:] = flags

    def _states(self) -> Iterable[tuple[Array, Array]]:
        for address, flags in self.unwritten:
            for host, size, start in zip(self.host, self.size, self.state_start, strict=True):
                begin, end = max(address, host), min(address + len(flags), host + size)
                if begin < end:
                    yield self.state[start + begin - host : start + end - host], flags[begin - address : end - address]

    def finish(self) -> None:
        """Takes what the launch has written off what is unwritten."""
        for state, flags in self._states():
            flags[:] = state == _UNWRITTEN

    def address(self, host: int) -> int:
        """Where the host's address lies in the launch; nowhere where it holds nothing."""
        k = int(np.searchsorted(self.host, host, "right")) - 1
        inside = k >= 0 and host < self.host[k] + self.size[k]
        return int(self.start[k] + host - self.host[k]) if inside else 1 << 60

    def locate(self, address: Array, width: int, unit: int) -> tuple[Array, Array]:
        """Indices into data and state, in units of bytes, of accesses of `width` bytes."""
        at = address.astype(np.int64)
        k = np.searchsorted(self.start, at, "right") - 1
        offset = at - self.start[k]
        outside = (k < 0) | (offset < 0) | (offset + width > self.size[k])
        if outside.any():
            which = int(np.flatnonzero(outside)[0])
            near = f"{offset[which]} bytes from the first of a tensor of {self.size[k[which]]}"
            raise PtxError(f"access outside of every tensor by {outside.sum()} threads, {near}")
        if (at % width).any():
            raise PtxError(f"access not aligned to its {width} bytes")
        return (self.host[k] - self.window + offset) // unit, (self.state_start[k] + offset) // unit

    def load(self, address: Array, who: Array, width: int, unit: int) -> list[Array]:
        at, state_at = self.locate(address, width, unit)
        data, state = self.data.view(_UNSIGNED[8 * unit]), self.state.view(_UNSIGNED[8 * unit])
        for k in range(width // unit):
            if state[state_at + k].any():
                seen = self.state.reshape(-1, unit)[state_at + k]
                told = "nothing has written" if (seen == _UNWRITTEN).any() else "this launch has written"
                raise PtxError(f"read of global memory that {told}")
        return [data[at + k] for k in range(width // unit)]

    def store(self, address: Array, who: Array, values: Sequence[Array], unit: int) -> None:
        at, state_at = self.locate(address, unit * len(values), unit)
        data, state = self.data.view(_UNSIGNED[8 * unit]), self.state.view(_UNSIGNED[8 * unit])
        marked = _UNSIGNED[8 * unit](int.from_bytes(bytes([_WRITTEN] * unit), "little"))
        for k, value in enumerate(values):
            again = (state[state_at + k] == marked) & (data[at + k] != value)
            data[at + k], state[state_at + k] = value, marked
            if again.any() or (data[at + k] != value).any():
                raise PtxError("two values written to one place by one launch")


class Shared:
    """Each program's shared memory, and which warp read and wrote each byte in which phase between two barriers."""

    def __init__(self, programs: int, size: int, threads: int) -> None:
        self.size, self.pitch = size, size + 16
        self.data = np.full(programs * self.pitch, 0xA5, np.uint8)
        self.read, self.wrote = (np.zeros(programs * self.pitch, np.int64) for _ in range(2))
        self.phase = np.ones(programs, np.int64)
        self.program = np.repeat(np.arange(programs), threads)
        self.warp = np.tile(np.arange(threads) // 32, programs)

    _MANY = 63  # warps

    def _at(self, address: Array, who: Array, width: int) -> tuple[Array, Array]:
        """Indices of each access's bytes [threads, width], and who it is: 64 phase + warp."""
        address = address.astype(np.int64)
        if (address % width).any():
            raise PtxError(f"access of shared memory not aligned to its {width} bytes")
        if len(address) and not (address.min() >= 0 and address.max() + width <= self.size):
            raise PtxError(f"access outside of {self.size} bytes of shared memory")
        program = self.program[who]
        code = 64 * self.phase[program] + self.warp[who]
        return (program * self.pitch + address)[:, None] + np.arange(width), code[:, None]

    def load(self, address: Array, who: Array, width: int, unit: int) -> list[Array]:
        at, code = self._at(address, who, width)
        wrote = self.wrote[at]
        if (wrote == 0).any():
            raise PtxError("read of shared memory that nothing has written")
        if ((wrote // 64 == code // 64) & (wrote != code)).any():
            raise PtxError("read of shared memory that another warp has written since the last barrier")
        before = self.read[at]
        self.read[at] = code
        several = ((before // 64 == code // 64) & (before != code)) | (self.read[at] != code)
        self.read[at[several]] = (code // 64 * 64 + self._MANY + 0 * at)[several]
        values = np.ascontiguousarray(self.data[at]).view(_UNSIGNED[8 * unit])
        return [values[:, k] for k in range(width // unit)]

    def store(self, address: Array, who: Array, values: Sequence[Array], unit: int) -> None:
        at, code = self._at(address, who, unit * len(values))
        new = np.ascontiguousarray(np.stack(values, 1)).view(np.uint8)
        # A sum of products by shuffles, contracted to fma, differs in its last bit between lanes, which all store it.
        _, last = np.unique((64 * at[:, 0] + code[:, 0] % 64)[::-1], return_index=True)
        at, code, new = (rows[::-1][last] for rows in (at, code, new))
        read, wrote = self.read[at], self.wrote[at]
        if ((read // 64 == code // 64) & (read != code)).any():
            raise PtxError("write to shared memory that another warp has read since the last barrier")
        again = (wrote // 64 == code // 64) & (wrote != code) & (self.data[at] != new)
        self.data[at], self.wrote[at] = new, code
        if again.any() or (self.data[at] != new).any():
            raise PtxError("two values written to one place of shared memory since the last barrier")


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _divide(a: Array, b: Array) -> Array:
    """Towards zero, as integers; by zero it may give anything."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    b = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _shift_left(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    return np.where(by >= bits, a.dtype.type(0), a << np.minimum(by, bits - 1).astype(a.dtype))


def _shift_right(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return np.where((by >= bits) & (a.dtype.kind == "u"), a.dtype.type(0), shifted)


def _select_bytes(a: Array, b: Array, selector: Array) -> Array:
    """``prmt``: four of the eight bytes, or their signs."""
    both, result = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32), np.uint32(0)
    for k in range(4):
        nibble = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = (both >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint8)
        byte = np.where(nibble & np.uint32(8), np.where(byte >= 128, np.uint8(255), np.uint8(0)), byte)
        result = result | byte.astype(np.uint32) << np.uint32(8 * k)
    return np.asarray(result)


def _extract(a: Array, begin: Array, length: Array) -> Array:
    """``bfe``."""
    bits = 8 * a.dtype.itemsize
    up = (bits - np.minimum(begin + length, bits)).astype(a.dtype)
    return np.where(length == 0, a.dtype.type(0), (a << up) >> (up + begin.astype(a.dtype)))


def _high_half(a: Array, b: Array) -> Array:
    """Of the product of numbers of 64 bits."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    (a1, a0), (b1, b0) = ((n >> half, n & low) for n in (a.astype(np.uint64), b.astype(np.uint64)))
    upper = a1 * b0 + (a0 * b0 >> half)
    lower = a0 * b1 + (upper & low)
    high = (a1 * b1 + (upper >> half) + (lower >> half)).astype(a.dtype)
    return high if a.dtype == np.uint64 else high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


def _multiply_add(a: Array, b: Array, c: Array) -> Array:
    exact = np.float64 if a.dtype == np.float32 else a.dtype
    return (a.astype(exact) * b + c).astype(a.dtype)


# Of operands of the instruction's last type, except those that _KINDS tells.
_PURE: dict[str, Callable[..., Any]] = {
    "cvta": lambda a: a, "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg,
    "abs": np.abs, "and": operator.and_, "or": operator.or_, "xor": operator.xor, "not": operator.invert,
    "min": np.fmin, "max": np.fmax, "div": _divide, "rem": lambda a, b: a - b * _divide(a, b), "fma": _multiply_add,
    "sqrt": np.sqrt, "rsqrt": lambda a: 1 / np.sqrt(a), "rcp": lambda a: 1 / a, "ex2": np.exp2, "lg2": np.log2,
    "copysign": lambda a, b: np.copysign(b, a), "shl": _shift_left, "shr": _shift_right, "prmt": _select_bytes,
    "bfe": _extract, "selp": lambda a, b, p: np.where(p, a, b),
}  # fmt: skip
_KINDS = {"shl": (1, "u32"), "shr": (1, "u32"), "bfe": (1, "u32"), "selp": (2, "pred")}  # of operands from there on
_COMPARE: dict[str, Callable[[Array, Array], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
_MODIFIERS = {"rn", "full", "approx", "to", "global", "shared", "uni"}  # which change nothing here


def _compare(how: str, a: Array, b: Array) -> Array:
    """ "equ" and its like are true of NaN, "eq" and its like are not."""
    unordered = np.isnan(a) | np.isnan(b)
    return _COMPARE[how](a, b) & ~unordered if how in _COMPARE else _COMPARE[how[:-1]](a, b) | unordered


def _narrow(a: Array, kind: str) -> Array:
    """The bits of float32, rounded to the nearest of a 16-bit type."""
    if kind == "f16":
        return a.astype(np.float16).view(np.uint16)
    word = np.ascontiguousarray(a, np.float32).view(np.uint32)
    rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(a), np.uint16(0x7FFF), rounded.astype(np.uint16))


def _widened(a: Array, kind: str) -> Array:
    """Float32 of a 16-bit type's bits."""
    return (a.astype(np.uint32) << np.uint32(16)).view(np.float32) if kind == "bf16" else a.astype(np.float32)


# --- running --------------------------------------------------------------------------------------------------------


def launch(
    text: str,
    values: Sequence[int | float],
    memory: Memory,
    grid: tuple[int, int, int] = (1, 1, 1),
    shared: int = 0,
    order: Callable[[list[int]], None] = lambda _: None,
) -> None:
    """Runs a grid of programs of a module's kernel, with its parameters' values and bytes of shared memory.

    order: shuffles the first programs of those that run at a time.
    """
    program, total = parse(text), grid[0] * grid[1] * grid[2]
    step = max(1, _LANES // program.threads)
    starts = list(range(0, total, step))
    order(starts)
    with np.errstate(all="ignore"):
        for first in starts:
            _Run(program, values, memory, grid, shared, np.arange(first, min(first + step, total))).run()
    memory.finish()


class _Run:
    """Some programs of a launch, in step."""

    def __init__(
        self,
        program: Program,
        values: Sequence[int | float],
        memory: Memory,
        grid: tuple[int, int, int],
        shared: int,
        programs: Array,
    ) -> None:
        self.program, self.memory, threads = program, memory, program.threads
        self.shared = Shared(len(programs), shared, threads)
        self.lanes = len(programs) * threads
        self.lane = np.arange(self.lanes) % 32
        places = {"%ctaid.x": programs % grid[0], "%ctaid.y": programs // grid[0] % grid[1]}
        places |= {"%ctaid.z": programs // (grid[0] * grid[1])}
        every = {"%nctaid.x": grid[0], "%nctaid.y": grid[1], "%nctaid.z": grid[2], "%ntid.x": threads, "global_smem": 0}
        self.registers: dict[str, Array] = {"%tid.x": np.tile(np.arange(threads, dtype=np.uint32), len(programs))}
        self.registers |= {name: np.repeat(place.astype(np.uint32), threads) for name, place in places.items()}
        self.registers |= {name: np.full(self.lanes, number, np.uint32) for name, number in every.items()}
        self.parameters = {
            name: np.array([value if kind[0] == "f" else int(value) % 2 ** _bits(kind)], _dtype(kind))
            for (name, kind), value in zip(program.parameters, values, strict=True)
        }

    def run(self) -> None:
        code, at = self.program.code, np.zeros(self.lanes, np.int64)  # each thread's next instruction
        while (here := int(at.min())) < len(code):
            instruction, active = code[here], at == here
            guard, (name, *_), operands, _ = instruction
            try:
                mask = active & self.value(guard, "pred") if guard else active
                at += active
                if name in ("bra", "ret", "exit"):
                    at[mask] = self.program.labels[operands[0]] if name == "bra" else len(code)
                elif handler := getattr(self, f"_{name}", None):
                    handler(instruction, mask)
                else:
                    self._pure(instruction, mask)
            except (KeyError, NotImplementedError):
                raise PtxError(f"unknown instruction {instruction}") from None
            except PtxError as fault:
                raise PtxError(f"{fault}: {instruction}") from None

    def value(self, text: str, kind: str) -> Array:
        """An operand, for every thread, as a type; of a 16-bit float the bits."""
        if text[0] == "!":
            return ~self.value(text[1:], kind)
        register = self.registers.get(text)
        if register is None:
            number = _immediate(text, "b8" if kind == "pred" else kind)
            if number is not None:
                return np.broadcast_to(number != 0 if kind == "pred" else number, self.lanes)
            if text in self.program.written:
                raise PtxError(f"read of {text} before it is set")
            register = np.full(self.lanes, 0xA5A5A5A5A5A5A5A5, np.uint64)  # undefined: nothing may depend on it
        if kind == "pred":
            return register.astype(bool, copy=False)
        return register.astype(_UNSIGNED[_bits(kind)], copy=False).view(_dtype(kind))

    def put(self, name: str, value: Array, mask: Array) -> None:
        """Sets a register of threads, its sign extended if it is wider."""
        if name == "_":
            return
        value = np.broadcast_to(value, self.lanes)
        if value.dtype != bool:
            bits = self.program.widths.get(name) or self.program.widths[re.sub(r"\d+$", "", name)]
            if value.dtype.kind == "f":
                value = value.view(_UNSIGNED[8 * value.dtype.itemsize])
            value = value.astype(_UNSIGNED[bits])
        old = self.registers.get(name)
        if not mask.all():
            value = np.where(mask, value, value.dtype.type(0xA5 % 2**8) if old is None else old)
        self.registers[name] = value

    def whole(self, mask: Array, size: int, what: str) -> None:
        groups = mask.reshape(-1, size)
        if (groups.any(1) != groups.all(1)).any():
            raise PtxError(f"a part of a {what} is here")

    def address(self, text: str) -> Array:
        base, _, offset = text.strip("[] ").partition("+")
        return self.value(base.strip(), "u64") + np.uint64(int(offset or 0) % 2**64)

    def _pure(self, i: Instruction, mask: Array) -> None:
        name, kind = i.op[0], i.op[-1]
        function, (first, other) = _PURE[name], _KINDS.get(name, (9, ""))
        kinds = [kind if k < first else other for k in range(len(i.operands) - 1)]
        mixed = i.op[-2:] in (("f32", "f16"), ("f32", "bf16"))  # fma.rn.f32.bf16: float32, but for the factors
        if set(i.op[1 : -2 if mixed else -1]) - _MODIFIERS or (kind in ("f16", "bf16") and not mixed):
            raise NotImplementedError
        if mixed:
            kinds[-1] = "f32"
        values = [self.value(text, k) for text, k in zip(i.operands[1:], kinds, strict=True)]
        if mixed:
            values[:-1] = [_widened(value, kind) for value in values[:-1]]
        if kind == "f32x2":
            pairs = [np.ascontiguousarray(value).view(np.float32) for value in values]
            self.put(i.operands[0], function(*pairs).view(np.uint64), mask)
        else:
            self.put(i.operands[0], function(*values), mask)

    def _mov(self, i: Instruction, mask: Array) -> None:
        to, source, kind = i.operands[0], i.operands[1], i.op[-1]
        parts = _names(to if to[0] == "{" else source)
        if to[0] == "{":  # unpack
            whole, bits = self.value(source, kind), _bits(kind) // len(parts)
            for k, part in enumerate(parts):
                self.put(part, (whole >> whole.dtype.type(k * bits)).astype(_UNSIGNED[bits]), mask)
        elif source[0] == "{":
            bits, dtype = _bits(kind) // len(parts), _dtype(kind).type
            shifted = [self.value(part, f"b{bits}").astype(dtype) << dtype(k * bits) for k, part in enumerate(parts)]
            self.put(to, functools.reduce(operator.or_, shifted), mask)
        else:
            self.put(to, self.value(source, kind), mask)

    def _mul(self, i: Instruction, mask: Array) -> None:
        (how, kind), operands = i.op[-2:], i.operands
        if kind[0] == "f":
            return self._pure(i, mask)
        a, b = (self.value(text, kind) for text in operands[1:3])
        if how == "hi" and _bits(kind) == 64:
            return self.put(operands[0], _high_half(a, b), mask)
        if how in ("wide", "hi"):
            wide = f"{kind[0]}{2 * _bits(kind)}"
            product = a.astype(_dtype(wide)) * b.astype(_dtype(wide))
            if how == "hi":
                return self.put(operands[0], (product >> product.dtype.type(_bits(kind))).astype(a.dtype), mask)
            kind = wide
        else:
            product = a * b
        self.put(operands[0], product + self.value(operands[3], kind) if i.op[0] == "mad" else product, mask)

    _mad = _mul

    def _setp(self, i: Instruction, mask: Array) -> None:
        _, how, kind = i.op
        self.put(i.operands[0], _compare(how, *(self.value(text, kind) for text in i.operands[1:])), mask)

    def _cvt(self, i: Instruction, mask: Array) -> None:
        to, kind = i.op[-2:]
        values = [self.value(text, kind) for text in i.operands[1:]]
        if kind in ("f16", "bf16"):
            values = [_widened(value, kind) for value in values]
        if kind[0] in "fb" and to[0] in "us":
            raise NotImplementedError
        if to in ("f16x2", "bf16x2"):
            high, low = (_narrow(value, to[:-2]).astype(np.uint32) for value in values)
            self.put(i.operands[0], high << np.uint32(16) | low, mask)
        else:
            self.put(
                i.operands[0], _narrow(values[0], to) if to in ("f16", "bf16") else values[0].astype(_dtype(to)), mask
            )

    def _shf(self, i: Instruction, mask: Array) -> None:
        low, high, by = (self.value(text, "u32").astype(np.uint64) for text in i.operands[1:])
        if i.op[1:3] != ("l", "wrap"):
            raise NotImplementedError
        shifted = (high << np.uint64(32) | low) << (by & np.uint64(31)) >> np.uint64(32)
        self.put(i.operands[0], shifted.astype(np.uint32), mask)

    def _ld(self, i: Instruction, mask: Array) -> None:
        kind = i.op[-1]
        if "param" in i.op:
            return self.put(i.operands[0], self.parameters[i.operands[1].strip("[]")].view(_dtype(kind)), mask)
        names, unit = _names(i.operands[0]), _bits(kind) // 8
        space: Any = self.shared if "shared" in i.op else self.memory if "global" in i.op else None
        loaded = space.load(self.address(i.operands[1])[mask], mask, unit * len(names), unit)
        for name, some in zip(names, loaded, strict=True):
            value = np.zeros(self.lanes, some.dtype)
            value[mask] = some
            self.put(name, value, mask)

    def _st(self, i: Instruction, mask: Array) -> None:
        kind = f"b{_bits(i.op[-1])}"
        space: Any = self.shared if "shared" in i.op else self.memory if "global" in i.op else None
        values = [self.value(name, kind)[mask] for name in _names(i.operands[1])]
        space.store(self.address(i.operands[0])[mask], mask, values, _bits(kind) // 8)

    def _shfl(self, i: Instruction, mask: Array) -> None:
        to, text, by, *rest = i.operands
        if rest != ["31", "-1"]:
            raise NotImplementedError
        self.whole(mask, 32, "warp")
        where = self.value(by, "u32").astype(np.int64)
        source = {"bfly": self.lane ^ where, "idx": where & 31}[i.op[2]]
        self.put(to, self.value(text, "b32")[np.arange(self.lanes) - self.lane + source], mask)

    def _bar(self, i: Instruction, mask: Array) -> None:
        if i.op == ("bar", "warp", "sync"):
            self.whole(mask, 32, "warp")
        elif i.op == ("bar", "sync") and i.operands == ("0",):
            self.whole(mask, self.program.threads, "program")
            self.shared.phase += mask[:: self.program.threads]
        else:
            raise NotImplementedError

    def _matrix(self, i: Instruction, mask: Array, registers: str, address: str) -> None:
        """8x8 matrices of 16 bits: lane 8 k + r has the address of row r of the k-th, each lane two of its elements."""
        self.whole(mask, 32, "warp")
        if i.op[-2:] != ("shared", "b16") or "m8n8" not in i.op:
            raise NotImplementedError
        rows = self.address(address).astype(np.int64)
        if (rows[mask] % 16).any():
            raise PtxError("a matrix's row not aligned to 16 bytes")
        pair = 2 * (self.lane % 4)
        for k, name in enumerate(_names(registers)):
            word = np.zeros(self.lanes, np.uint32)
            for half in (0, 1):
                row, column = (pair + half, self.lane // 4) if "trans" in i.op else (self.lane // 4, pair + half)
                at = (rows[np.arange(self.lanes) - self.lane + 8 * k + row] + 2 * column)[mask]
                if i.op[0] == "ldmatrix":
                    word[mask] |= self.shared.load(at, mask, 2, 2)[0].astype(np.uint32) << np.uint32(16 * half)
                else:
                    value = self.value(name, "b32")[mask] >> np.uint32(16 * half)
                    self.shared.store(at, mask, [value.astype(np.uint16)], 2)
            if i.op[0] == "ldmatrix":
                self.put(name, word, mask)

    def _ldmatrix(self, i: Instruction, mask: Array) -> None:
        self._matrix(i, mask, *i.operands)

    def _stmatrix(self, i: Instruction, mask: Array) -> None:
        self._matrix(i, mask, *i.operands[::-1])


def _names(text: str) -> list[str]:
    return re.findall(r"[%\w.-]+", text)
