"""Lengths, flow and written registers of x86-64 instructions: as much as choosing a probe site needs.

Receives the bytes of a function, hands on one `Instruction` at a time.  What it does not know it says with
`UnknownInstructionError`; it never guesses a length.  It is no disassembler: operands are not decoded beyond the
general registers that an instruction writes, and where that is not known exactly it says more registers, never fewer.

Sources: Intel SDM volume 2, chapter 2 (format) and appendix A (opcode maps); which instructions an uprobe emulates:
Linux ``arch/x86/kernel/uprobes.c``, `branch_setup_xol_ops` and `push_setup_xol_ops`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = (1 << number for number in range(8))
R8, R9, R10, R11, R12, R13, R14, R15 = (1 << number for number in range(8, 16))
ALL_REGISTERS = 0xFFFF

_LONGEST = 15  # bytes, Intel SDM volume 2, 2.3.11


class UnknownInstructionError(ValueError):
    """The bytes are no instruction that this decoder knows, or they end inside one."""


class Flow(enum.IntEnum):
    """Where control goes after an instruction."""

    NEXT = 0
    JUMP = 1  # direct: target is known
    CONDITIONAL = 2  # direct, or the next instruction
    CALL = 3  # direct
    RETURN = 4
    INDIRECT_JUMP = 5
    INDIRECT_CALL = 6
    STOP = 7  # ud2, hlt, int3: nothing comes back


class Price(enum.IntEnum):
    """What a probe on an instruction costs, by how the kernel carries the instruction out."""

    NOP5 = 0  # 0f 1f 44 00 00: rewritten into a system call by the newest kernels
    EMULATED = 1  # push, jcc, call, jmp and 90 on every kernel that onlooker supports
    LONG_NOP = 2  # other forms of 0f 1f: emulated by the newest kernels, stepped by older ones
    STEPPED = 3


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction.

    Attributes:
        address: As passed to `decode`.
        length: In bytes.
        flow: Where control goes.
        target: Address of a direct jump or call, else None.
        writes: Bit ``1 << n`` for each general register that may be written; calls write what callees may clobber.
        price: Of a probe on it.
        pushes: Whether it moves the stack pointer down (push, ``sub`` of an immediate).
        copies: ``(from, to)``, numbers of the registers of a 64-bit register move, else None.
    """

    address: int
    length: int
    flow: Flow
    target: int | None
    writes: int
    price: Price
    pushes: bool
    copies: tuple[int, int] | None = None

    @property
    def end(self) -> int:
        """Address of the next instruction."""
        return self.address + self.length


_CALL_CLOBBERS = RAX | RCX | RDX | RSI | RDI | R8 | R9 | R10 | R11 | RSP


def _opcodes(text: str) -> frozenset[int]:
    """Read ``"00-03 0f"`` as a set of opcodes."""
    found: set[int] = set()
    for word in text.split():
        first, _, last = word.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(found)


# One-byte map, 64-bit mode.
_INVALID_1 = _opcodes("06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 82 9a ce d4 d5 d6 ea")
_MODRM_1 = _opcodes(
    "00-03 08-0b 10-13 18-1b 20-23 28-2b 30-33 38-3b 63 69 6b 80 81 83-8f c0 c1 c6 c7 d0-d3 d8-df f6 f7 fe ff"
)
_IMM8_1 = _opcodes("04 0c 14 1c 24 2c 34 3c 6a 6b 70-7f 80 83 a8 b0-b7 c0 c1 c6 cd d4 d5 e0-e7 eb")
_IMMZ_1 = _opcodes("05 0d 15 1d 25 2d 35 3d 68 69 81 a9 c7")  # 2 bytes with 66, else 4
# Two-byte map (0f).
_INVALID_2 = _opcodes("04 0a 0c 0f 24-27 36 39 3b-3f a6 a7")
_NO_MODRM_2 = _opcodes("05-09 0b 0e 30-35 37 77 80-8f a0-a2 a8-aa c8-cf")
_IMM8_2 = _opcodes("70-73 a4 ac ba c2 c4-c6")
# Two-byte instructions that write no general register (vector, test, store to memory, hints).
_WRITES_NONE_2 = _opcodes("0b 0d 10-1b 1d-1f 28-2b 2e 2f 51-6f 70-77 7c-7d 7f a3 c2 c4 c6 d0-d6 d8-ff")
_WRITES_REG_2 = _opcodes("02 03 2c 2d 40-4f 50 af b2 b4-b8 bc-bf c5 d7")
_WRITES_RM_2 = _opcodes("90-9f 7e a4 a5 ab ac ad b3 bb")

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")


@dataclass(slots=True)
class _Cursor:
    code: bytes
    at: int
    end: int

    def byte(self) -> int:
        if self.at >= self.end:
            raise UnknownInstructionError("the bytes end inside an instruction")
        value = self.code[self.at]
        self.at += 1
        return value

    def skip(self, count: int) -> None:
        if self.at + count > self.end:
            raise UnknownInstructionError("the bytes end inside an instruction")
        self.at += count

    def signed(self, count: int) -> int:
        self.skip(count)
        return int.from_bytes(self.code[self.at - count : self.at], "little", signed=True)

    def modrm(self) -> int:
        """Read ModRM with its SIB byte and displacement; gives the ModRM byte."""
        modrm = self.byte()
        mod, rm = modrm >> 6, modrm & 7
        if mod != 3:
            base_is_disp32 = False
            if rm == 4:
                base_is_disp32 = self.byte() & 7 == 5 and mod == 0
            if mod == 1:
                self.skip(1)
            elif mod == 2 or base_is_disp32 or (mod == 0 and rm == 5):
                self.skip(4)
        return modrm


def decode(code: bytes, offset: int = 0, address: int = 0) -> Instruction:
    """Decode the instruction at ``code[offset:]``.

    Args:
        code: Machine code; may go on behind the instruction.
        offset: Where the instruction begins in ``code``.
        address: Of that place, in the terms in which targets are wanted.

    Raises:
        UnknownInstructionError: The bytes are no known instruction, or too few.
    """
    cursor = _Cursor(code, offset, min(len(code), offset + _LONGEST))
    prefixes: set[int] = set()
    opcode = cursor.byte()
    while opcode in _LEGACY_PREFIXES:
        prefixes.add(opcode)
        opcode = cursor.byte()
    rex = 0
    if opcode & 0xF0 == 0x40:
        rex = opcode
        opcode = cursor.byte()
        if opcode & 0xF0 == 0x40 or opcode in _LEGACY_PREFIXES:
            raise UnknownInstructionError("a prefix behind REX")
    if opcode in (0xC4, 0xC5, 0x62):
        writes = _vector(cursor, opcode, rex, prefixes)
        return Instruction(address, cursor.at - offset, Flow.NEXT, None, writes, Price.STEPPED, False)
    if opcode == 0x0F:
        return _two_byte(cursor, offset, address, prefixes, rex)
    return _one_byte(cursor, offset, address, prefixes, rex, opcode)


def _one_byte(cursor: _Cursor, offset: int, address: int, prefixes: set[int], rex: int, opcode: int) -> Instruction:
    if opcode in _INVALID_1:
        raise UnknownInstructionError(f"opcode {opcode:#04x} is not valid in 64-bit mode")
    modrm = cursor.modrm() if opcode in _MODRM_1 else 0
    reg = modrm >> 3 & 7
    if opcode == 0x8F and reg:
        raise UnknownInstructionError("an XOP instruction")
    flow, target, price, pushes = Flow.NEXT, None, Price.STEPPED, False
    small = 0x66 in prefixes and not rex & 8
    if opcode in (0xE8, 0xE9) or 0x70 <= opcode <= 0x7F or opcode == 0xEB or 0xE0 <= opcode <= 0xE3:
        if 0x66 in prefixes:
            raise UnknownInstructionError("a branch with an operand-size prefix: processors differ")
        displacement = cursor.signed(4 if opcode in (0xE8, 0xE9) else 1)
        target = address + (cursor.at - offset) + displacement
        flow = {0xE8: Flow.CALL, 0xE9: Flow.JUMP, 0xEB: Flow.JUMP}.get(opcode, Flow.CONDITIONAL)
        if not prefixes and not 0xE0 <= opcode <= 0xE3:
            price = Price.EMULATED
    elif opcode in _IMM8_1:
        immediate = cursor.signed(1)
        pushes = opcode == 0x83 and modrm == 0xEC and immediate > 0
    elif opcode in _IMMZ_1:
        immediate = cursor.signed(2 if small else 4)
        pushes = opcode == 0x81 and modrm == 0xEC and immediate > 0
    elif 0xB8 <= opcode <= 0xBF:
        cursor.skip(8 if rex & 8 else 2 if small else 4)
    elif 0xA0 <= opcode <= 0xA3:
        cursor.skip(4 if 0x67 in prefixes else 8)
    elif opcode in (0xC2, 0xCA):
        cursor.skip(2)
    elif opcode == 0xC8:
        cursor.skip(3)
    elif opcode in (0xF6, 0xF7) and reg < 2:
        cursor.skip(1 if opcode == 0xF6 else 2 if small else 4)
    if opcode in (0xC2, 0xC3, 0xCA, 0xCB, 0xCF):
        flow = Flow.RETURN
    elif opcode in (0xCC, 0xF4, 0xF1):
        flow = Flow.STOP
    elif opcode == 0xFF and 2 <= reg <= 5:
        flow = Flow.INDIRECT_CALL if reg < 4 else Flow.INDIRECT_JUMP
    elif 0x50 <= opcode <= 0x57:
        pushes = True
        if not prefixes and rex in (0, 0x41):
            price = Price.EMULATED
    elif opcode == 0x90 and not rex & 1 and prefixes <= {0x66}:
        price = Price.EMULATED
    copies = None
    if opcode in (0x89, 0x8B) and modrm >> 6 == 3 and rex & 8 and not prefixes:
        one, other = (modrm & 7) | (rex & 1) << 3, reg | (rex & 4) << 1
        copies = (other, one) if opcode == 0x89 else (one, other)
    writes = _written(opcode, modrm, rex, prefixes)
    return Instruction(address, cursor.at - offset, flow, target, writes, price, pushes, copies)


def _two_byte(cursor: _Cursor, offset: int, address: int, prefixes: set[int], rex: int) -> Instruction:
    opcode = cursor.byte()
    flow, target, price = Flow.NEXT, None, Price.STEPPED
    if opcode in (0x38, 0x3A):
        third = cursor.byte()
        modrm = cursor.modrm()
        if opcode == 0x3A:
            cursor.skip(1)
        # 0f 38: movbe, crc32, adcx, adox and their kind stand from c8 on; 0f 3a: pextr goes to a register.
        vector_only = third < 0xC0 if opcode == 0x38 else not 0x14 <= third <= 0x17 and third < 0xC0
        writes = 0 if vector_only or 0xD8 <= third <= 0xDF or 0xC8 <= third <= 0xCD else ALL_REGISTERS & ~RSP
        if opcode == 0x3A and 0x60 <= third <= 0x63:
            writes = RCX  # pcmpestri, pcmpistri
        return Instruction(address, cursor.at - offset, flow, None, writes, price, False)
    if opcode in _INVALID_2:
        raise UnknownInstructionError(f"opcode 0f {opcode:02x}")
    if opcode in (0x78, 0x79) and prefixes & {0x66, 0xF2}:
        raise UnknownInstructionError("an SSE4a instruction")
    if 0x80 <= opcode <= 0x8F:
        if 0x66 in prefixes:
            raise UnknownInstructionError("a branch with an operand-size prefix: processors differ")
        displacement = cursor.signed(4)
        price = Price.STEPPED if prefixes else Price.EMULATED
        target = address + (cursor.at - offset) + displacement
        return Instruction(address, cursor.at - offset, Flow.CONDITIONAL, target, 0, price, False)
    modrm = 0
    if 0x20 <= opcode <= 0x23:
        modrm = cursor.byte() | 0xC0  # mov to and from control registers ignores the mode bits
    elif opcode not in _NO_MODRM_2:
        modrm = cursor.modrm()
    if opcode in _IMM8_2:
        cursor.skip(1)
    if opcode == 0x1F and 0xF0 not in prefixes:
        plain = cursor.code[offset : cursor.at] == b"\x0f\x1f\x44\x00\x00"
        refused = prefixes & {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0xF2, 0xF3}
        price = Price.NOP5 if plain else Price.STEPPED if refused else Price.LONG_NOP
    if opcode in (0x0B, 0xB9, 0xFF):
        flow = Flow.STOP  # ud2, ud1, ud0
    elif opcode in (0x07, 0x35):
        flow = Flow.RETURN
    return Instruction(
        address, cursor.at - offset, flow, target, _written_2(opcode, modrm, rex, prefixes), price, False
    )


def _vector(cursor: _Cursor, opcode: int, rex: int, prefixes: set[int]) -> int:
    """Read the rest of a VEX or EVEX instruction; gives the registers that it may write."""
    if rex or prefixes & {0x66, 0xF0, 0xF2, 0xF3}:
        raise UnknownInstructionError("a prefix that VEX and EVEX do not take")
    first = cursor.byte()
    if opcode == 0xC5:
        table = 1
    elif opcode == 0xC4:
        table = first & 0x1F
        cursor.skip(1)
    else:
        table = first & 7
        if first & 8 or not cursor.byte() & 4:
            raise UnknownInstructionError("an EVEX form of APX")
        cursor.skip(1)
    if table not in (1, 2, 3, 5, 6) or (table > 3 and opcode != 0x62):
        raise UnknownInstructionError(f"opcode map {table}")
    operation = cursor.byte()
    if table == 1 and operation == 0x77 and opcode != 0x62:
        return 0  # vzeroupper, vzeroall: no ModRM
    cursor.modrm()
    if table == 3 or (table == 1 and operation in (0x70, 0x71, 0x72, 0x73, 0xC2, 0xC4, 0xC5, 0xC6)):
        cursor.skip(1)
    # Moves to a general register and the bit-manipulation instructions; rcx by vpcmp?str?.
    if table == 1 and operation in (0x10, 0x11, 0x28, 0x29, 0x57, 0x6E, 0x6F, 0x7F, 0xEF, 0xD6):
        return 0
    if table == 2 and 0x58 <= operation <= 0x5B:
        return 0
    return ALL_REGISTERS & ~RSP


def _rm(modrm: int, rex: int) -> int:
    """The general register in the r/m place, 0 if that place is memory."""
    return 1 << ((modrm & 7) | (rex & 1) << 3) if modrm >> 6 == 3 else 0


def _reg(modrm: int, rex: int) -> int:
    return 1 << ((modrm >> 3 & 7) | (rex & 4) << 1)


def _byte_register(bit: int, rex: int) -> int:
    """Without REX, byte registers 4 to 7 are ah, ch, dh, bh; say both, it costs nothing."""
    return bit if rex else bit | (bit >> 4 if bit & 0xF0 else 0)


def _written(opcode: int, modrm: int, rex: int, prefixes: set[int]) -> int:
    """Registers that an instruction of the one-byte map may write; all of them if in doubt."""
    extension = modrm >> 3 & 7
    if opcode < 0x40:
        kind = opcode & 7
        if opcode >= 0x38:
            return 0  # cmp
        places = {0: _rm, 1: _rm, 2: _reg, 3: _reg}
        written = places[kind](modrm, rex) if kind < 4 else RAX
        return written if kind & 1 else _byte_register(written, rex)
    if 0x50 <= opcode <= 0x57 or opcode in (0x68, 0x6A, 0x9C):
        return RSP
    if 0x58 <= opcode <= 0x5F:
        return RSP | 1 << ((opcode & 7) | (rex & 1) << 3)
    if opcode in (0x63, 0x69, 0x6B, 0x8B, 0x8D):
        return _reg(modrm, rex)
    if opcode == 0x8A:
        return _byte_register(_reg(modrm, rex), rex)
    if opcode in (0x80, 0x81, 0x83):
        written = 0 if extension == 7 else _rm(modrm, rex)
        return _byte_register(written, rex) if opcode == 0x80 else written
    if opcode in (0x84, 0x85, 0xA8, 0xA9) or 0x70 <= opcode <= 0x7F or opcode in (0xEB, 0xE9):
        return 0
    if opcode in (0x86, 0x87):
        both = _rm(modrm, rex) | _reg(modrm, rex)
        return _byte_register(_rm(modrm, rex), rex) | _byte_register(_reg(modrm, rex), rex) | both
    if opcode in (0x88, 0x89, 0xC6, 0xC7, 0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3):
        return _byte_register(_rm(modrm, rex), rex) if opcode in (0x88, 0xC6, 0xC0, 0xD0, 0xD2) else _rm(modrm, rex)
    if opcode == 0x90 and not rex & 1:
        return 0
    if 0x90 <= opcode <= 0x97:
        return RAX | 1 << ((opcode & 7) | (rex & 1) << 3)
    if opcode == 0x98:
        return RAX
    if opcode == 0x99:
        return RDX
    if 0xB0 <= opcode <= 0xBF:
        bit = 1 << ((opcode & 7) | (rex & 1) << 3)
        return bit if opcode >= 0xB8 else _byte_register(bit, rex)
    if opcode in (0xF6, 0xF7):
        if extension < 2:
            return 0
        if extension < 4:
            return _byte_register(_rm(modrm, rex), rex)
        return RAX | RDX
    if opcode in (0xFE, 0xFF) and extension < 2:
        return _byte_register(_rm(modrm, rex), rex) if opcode == 0xFE else _rm(modrm, rex)
    if opcode == 0xFF and extension == 6:
        return RSP
    if opcode == 0xE8 or (opcode == 0xFF and extension in (2, 3)):
        return _CALL_CLOBBERS
    if opcode == 0xFF and extension in (4, 5):
        return 0
    if opcode in (0xC3, 0xC2):
        return RSP
    if opcode in (0xA4, 0xA5, 0xAA, 0xAB, 0xA6, 0xA7, 0xAE, 0xAF):
        return RSI | RDI | (RCX if prefixes & {0xF2, 0xF3} else 0)
    if opcode == 0xC9:
        return RSP | RBP
    return ALL_REGISTERS


def _written_2(opcode: int, modrm: int, rex: int, prefixes: set[int]) -> int:
    """As `_written`, for the two-byte map."""
    if opcode == 0x7E:
        return 0 if 0xF3 in prefixes else _rm(modrm, rex)
    if opcode == 0x1E and modrm >> 6 == 3 and 0xF3 in prefixes and modrm not in (0xFA, 0xFB):
        return _rm(modrm, rex)  # rdssp
    if opcode in _WRITES_NONE_2:
        return 0
    if opcode in _WRITES_REG_2:
        return _reg(modrm, rex)
    if opcode in _WRITES_RM_2:
        return _byte_register(_rm(modrm, rex), rex)
    if opcode == 0xBA:
        return 0 if modrm >> 3 & 7 == 4 else _rm(modrm, rex)
    if opcode in (0xB0, 0xB1):
        return RAX | _byte_register(_rm(modrm, rex), rex)
    if opcode in (0xC0, 0xC1):
        return _byte_register(_rm(modrm, rex), rex) | _byte_register(_reg(modrm, rex), rex)
    if opcode == 0xC3:
        return 0  # movnti
    if 0xC8 <= opcode <= 0xCF:
        return 1 << ((opcode & 7) | (rex & 1) << 3)
    if opcode == 0xA2:
        return RAX | RBX | RCX | RDX
    if opcode == 0x31:
        return RAX | RDX
    if opcode == 0x05:
        return RAX | RCX | R11
    return ALL_REGISTERS


def walk(code: bytes, address: int) -> Iterator[Instruction]:
    """Decode one instruction after the other until the code ends or cannot be decoded."""
    offset = 0
    while offset < len(code):
        try:
            instruction = decode(code, offset, address + offset)
        except UnknownInstructionError:
            return
        yield instruction
        offset += instruction.length
