"""Where a probe goes so that it is cheap and still exact: the price of an uprobe is the instruction under it.

Receives a function of an open ELF file and what is wanted of it, hands on a `Site`.  A site inside a function is only
chosen where it is executed exactly once per call: in the straight line from the entry, before anything can skip it,
with nothing that jumps back behind the entry.  Where nothing cheap is safe the site is the entry, and says its price.

The rules and the figures behind them: ``docs/reference/probe-sites.md``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from onlooker.attach import x86
from onlooker.attach.elf import ElfFile, Symbol
from onlooker.attach.x86 import Flow, Instruction, Price

_BODY_LIMIT = 32 * 1024  # bytes of one function that are decoded; larger ones get their entry
_PREFIX_LIMIT = 64  # instructions from the entry that are considered
_WRAPPERS_LIMIT = 3  # wrappers inside one another
_UNKNOWN_SIZE = 4096  # bytes taken for a function whose length nothing says

# System V psABI for x86-64, 3.2.3: integer arguments in order.
ARGUMENT_REGISTERS = (7, 6, 2, 1, 8, 9)
REGISTER_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


class Need(enum.Enum):
    """What the probe has to see."""

    ARGUMENTS = "arguments"
    RETURN = "return"


class Place(enum.Enum):
    """Where the site stands."""

    ENTRY = "entry"
    INSIDE = "inside"
    INNER = "inner"  # at the beginning of the function that a thin wrapper calls


@dataclass(frozen=True, slots=True)
class Prices:
    """Microseconds a hit, by kind of instruction; `returning` comes on top for a return probe.

    Stepping costs about 1 µs on bare metal and about 20 µs in a nested virtual machine.
    """

    nop5: float = 0.3
    emulated: float = 0.7
    long_nop: float = 0.7
    stepped: float = 20.0
    returning: float = 0.3

    def of(self, price: Price, *, returns: bool) -> float:
        """What one hit costs."""
        hit = (self.nop5, self.emulated, self.long_nop, self.stepped)[price]
        return round(hit + (self.returning if returns else 0.0), 2)


@dataclass(frozen=True, slots=True)
class Site:
    """One place to attach to.

    Attributes:
        symbol: The function that was asked for.
        offset: In the file, as the kernel's uprobes want it.
        address: The same place in memory terms of the file.
        need: What the probe sees there; for `Need.RETURN` attach a return probe.
        place: Where it stands.
        price: Class of the instruction under it.
        expected_price_us: A hit, by `Prices`.
        registers: Numbers of the registers that hold the arguments there, in order.
        explanation: One clause for people.
    """

    symbol: str
    offset: int
    address: int
    need: Need
    place: Place
    price: Price
    expected_price_us: float
    registers: tuple[int, ...]
    explanation: str

    @property
    def is_cheap(self) -> bool:
        """Whether the kernel carries the instruction out without stepping through it."""
        return self.price is not Price.STEPPED


class SiteChooser:
    """Chooses sites in one ELF file."""

    def __init__(self, elf: ElfFile, prices: Prices | None = None) -> None:
        self._elf = elf
        self.prices = prices or Prices()
        self._bodies: dict[Symbol, _Body | None] = {}

    def choose(self, symbol: Symbol, need: Need, *, arguments: int = 3) -> Site | None:
        """Choose the site for a function of the C calling convention.

        Args:
            symbol: The function.
            need: What the probe has to see. A return probe sees the arguments too, and works wherever the stack pointer
                still is as at the entry.
            arguments: How many integer arguments must still be in registers.

        Returns:
            None if no byte of the function can be read as code.
        """
        registers = ARGUMENT_REGISTERS if self._elf.machine == "x86_64" else tuple(range(len(ARGUMENT_REGISTERS)))
        return self._choose(symbol, need, registers[:arguments], go=False)

    def choose_go(self, symbol: Symbol, registers: tuple[int, ...]) -> Site | None:
        """Choose the site for the arguments of a Go function: behind the stack check, where it is passed once a call.

        A Go function may begin with a check that grows the stack and then starts the function over; the entry and the
        branch of the check are executed again after that.
        """
        return self._choose(symbol, Need.ARGUMENTS, registers, go=True)

    def _choose(self, symbol: Symbol, need: Need, registers: tuple[int, ...], *, go: bool) -> Site | None:
        if self._elf.machine != "x86_64":
            return self._entry(symbol, need, registers, "the entry: sites are only chosen on x86-64")
        body = self._body(symbol)
        if body is None:
            return None
        best, now, reason = self._cheapest(body, _Held.at_entry(registers), stack=need is Need.RETURN, go=go)
        if best is None:
            return self._entry(symbol, need, registers, f"the entry, dear: {reason}")
        first = body.instructions[0]
        if best is first:
            note = "; it may pass there more than once a call" if body.begin in body.targets else ""
            reason = f"the entry, {self._how(best)}{note}"
        place = Place.ENTRY if best is first else Place.INSIDE
        return self._site(symbol.name, need, place, best, now, reason)

    def inner(self, symbol: Symbol, need: Need, *, arguments: int) -> list[Site]:
        """The entries of the functions that a thin wrapper leads to with its own arguments, the nearest first.

        A wrapper must reach the call in a straight line, with every argument in a register of its own. A site sees
        every caller of the inner function, and returns what the inner function returns: who asks has to know that
        both suit. Empty if there is no such form, or nothing cheap at the beginning of any of them.
        """
        found: list[Site] = []
        body = self._body(symbol)
        held = _Held.at_entry(ARGUMENT_REGISTERS[:arguments])
        for _ in range(_WRAPPERS_LIMIT):
            target = self._leads_to(body, held) if body is not None else None
            if target is None:
                break
            registers = held.registers()
            held = _Held([{number} for number in registers])
            body = self._body(self._elf.function_at(target) or Symbol(symbol.name, target, 0))
            if body is None:
                break
            first = body.instructions[0]
            if self._is_endbr(first) and len(body.instructions) > 1:
                first = body.instructions[1]
            if first.price is not Price.STEPPED and body.begin not in body.targets:
                text = f"the function behind {symbol.name}, at {self._how(first)}"
                found.append(self._site(symbol.name, need, Place.INNER, first, registers, text))
        return found

    def _leads_to(self, body: _Body, held: _Held) -> int | None:
        """Where the straight line of a wrapper leads, with ``held`` followed to there; None if an argument is lost."""
        for instruction in body.prefix():
            if instruction.flow in (Flow.CALL, Flow.JUMP):
                return instruction.target
            if instruction.flow is not Flow.NEXT or not held.after(instruction):
                return None
        return None

    def calls(self, symbol: Symbol) -> list[Instruction]:
        """Direct calls and jumps out of a function."""
        body = self._body(symbol)
        if body is None or self._elf.machine != "x86_64":
            return []
        return [
            instruction
            for instruction in body.instructions
            if instruction.target is not None
            and (instruction.flow is Flow.CALL or not body.begin <= instruction.target < body.end)
        ]

    def at_call(self, symbol: Symbol, target: int, registers: tuple[int, ...], what: str) -> Site | None:
        """The one call of ``target`` inside a function, None if there are none or several."""
        hits = [call for call in self.calls(symbol) if call.target == target]
        if len(hits) != 1 or hits[0].price is not Price.EMULATED:
            return None
        return self._site(symbol.name, Need.ARGUMENTS, Place.INSIDE, hits[0], registers, f"its only call of {what}")

    def returns(self, symbol: Symbol, registers: tuple[int, ...], limit: int = 32) -> list[Site]:
        """The return instructions of a function, for runtimes that a return probe would break. Dear: all stepped."""
        body = self._body(symbol)
        if body is None or self._elf.machine != "x86_64" or not body.complete:
            return []
        hits = [instruction for instruction in body.instructions if instruction.flow is Flow.RETURN]
        if len(hits) > limit:
            return []
        return [
            self._site(symbol.name, Need.ARGUMENTS, Place.INSIDE, hit, registers, "a return instruction")
            for hit in hits
        ]

    # How ---------------------------------------------------------------------------------------------------------

    def _cheapest(
        self, body: _Body, held: _Held, *, stack: bool, go: bool
    ) -> tuple[Instruction | None, tuple[int, ...], str]:
        """The first cheap instruction that is passed exactly once per call, and the registers of the arguments there.

        Gives None and the reason if there is none. With ``stack`` the stack pointer has to be as at the entry.
        """
        first = body.instructions[0]
        entry = held.registers()
        skipped_check = go and first.flow is Flow.CONDITIONAL
        if first.price in (Price.NOP5, Price.EMULATED) and not skipped_check:
            return first, entry, "its first instruction"
        candidate: Instruction | None = None
        reason = "nothing cheap comes before an argument is overwritten"
        for instruction in body.prefix():
            growing = go and instruction.flow is Flow.CONDITIONAL and body.grows_stack(instruction)
            if instruction.price is not Price.STEPPED and not growing:
                candidate = instruction
                break
            if not held.after(instruction):
                break
            if stack and instruction.writes & x86.RSP:
                reason = "nothing cheap comes before the stack pointer moves"
                break
            if instruction.flow is not Flow.NEXT and not growing:
                reason = "nothing cheap comes before its first branch"
                break
        if candidate is None or candidate is first:
            return candidate, entry, reason
        unsafe = self._unsafe(body, candidate, go=go)
        if unsafe:
            return None, entry, unsafe
        return candidate, held.registers(), f"{candidate.address - body.begin} bytes in, on {self._how(candidate)}"

    def _unsafe(self, body: _Body, candidate: Instruction, *, go: bool) -> str:
        """Why a place in the straight line may be passed more or less often than once per call; empty if it is safe."""
        if not body.complete:
            return "it cannot be decoded to its end"
        if any(body.begin < target <= candidate.address for target in body.targets):
            return "a loop comes back to the only cheap place"
        if body.begin in body.targets and not (go and body.only_growing_begins_over()):
            return "it jumps back to its own beginning"
        if body.has_indirect_jump and not self._is_prologue(body, candidate):
            return "it has a jump table that might lead back to the only cheap place"
        if self._elf.has_branch_into(body.begin + 1, candidate.address + 1):
            return "code elsewhere may jump to the only cheap place"
        return ""

    def _entry(self, symbol: Symbol, need: Need, registers: tuple[int, ...], explanation: str) -> Site | None:
        offset = self._elf.offset_of(symbol.address)
        if offset is None:
            return None
        cost = self.prices.of(Price.STEPPED, returns=need is Need.RETURN)
        return Site(symbol.name, offset, symbol.address, need, Place.ENTRY, Price.STEPPED, cost, registers, explanation)

    def _site(
        self, name: str, need: Need, place: Place, at: Instruction, registers: tuple[int, ...], explanation: str
    ) -> Site:
        offset = self._elf.offset_of(at.address)
        assert offset is not None  # the instruction was read from there
        cost = self.prices.of(at.price, returns=need is Need.RETURN)
        return Site(name, offset, at.address, need, place, at.price, cost, registers, explanation)

    def _body(self, symbol: Symbol) -> _Body | None:
        if symbol not in self._bodies:
            self._bodies[symbol] = self._decoded(symbol)
        return self._bodies[symbol]

    def _decoded(self, symbol: Symbol) -> _Body | None:
        if self._elf.machine != "x86_64":
            return None
        code = self._elf.code(symbol.address, min(symbol.size or _UNKNOWN_SIZE, _BODY_LIMIT))
        instructions = list(x86.walk(code, symbol.address))
        if not instructions:
            return None
        end = symbol.address + symbol.size
        complete = bool(symbol.size) and instructions[-1].end == end
        return _Body(symbol.address, end if complete else instructions[-1].end, instructions, complete)

    def _is_endbr(self, instruction: Instruction) -> bool:
        return self._elf.code(instruction.address, 4) == b"\xf3\x0f\x1e\xfa"

    def _is_prologue(self, body: _Body, candidate: Instruction) -> bool:
        """Whether the stack pointer still moves down at or behind the site, in the straight line.

        No code comes back to a place before that with a jump: each round would eat stack.
        """
        return any(i.pushes for i in body.prefix() if i.address >= candidate.address)

    def _how(self, instruction: Instruction) -> str:
        flow = {Flow.CALL: "a call", Flow.JUMP: "a jump", Flow.CONDITIONAL: "a conditional jump"}
        return flow.get(instruction.flow) or {Price.EMULATED: "a push or nop", Price.STEPPED: "a stepped one"}.get(
            instruction.price, "a nop"
        )


@dataclass(slots=True)
class _Held:
    """In which registers each argument stands."""

    places: list[set[int]]
    preferred: tuple[int, ...] = ()

    @classmethod
    def at_entry(cls, registers: tuple[int, ...]) -> _Held:
        return cls([{number} for number in registers], registers)

    def after(self, instruction: Instruction) -> bool:
        """Follow one instruction; False as soon as an argument is in no register any more."""
        for places in self.places:
            copied = instruction.copies is not None and instruction.copies[0] in places
            places -= {number for number in places if instruction.writes >> number & 1}
            if copied and instruction.copies is not None:
                places.add(instruction.copies[1])
        return all(self.places)

    def registers(self) -> tuple[int, ...]:
        """One register for each argument: the one of the calling convention if it still holds it."""
        return tuple(
            first if first in places else min(places)
            for places, first in zip(self.places, self.preferred or [-1] * len(self.places), strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Body:
    """The instructions of one function, in the order of the file."""

    begin: int
    end: int
    instructions: list[Instruction]
    complete: bool

    @property
    def targets(self) -> set[int]:
        """Where direct jumps of the function lead to."""
        return {i.target for i in self.instructions if i.target is not None and i.flow is not Flow.CALL}

    @property
    def has_indirect_jump(self) -> bool:
        return any(i.flow is Flow.INDIRECT_JUMP for i in self.instructions)

    def prefix(self) -> Iterator[Instruction]:
        """The first instructions, in the order of the file; who walks decides where the straight line ends."""
        return iter(self.instructions[:_PREFIX_LIMIT])

    def grows_stack(self, branch: Instruction) -> bool:
        """Whether a branch leads to the tail that saves the arguments, calls the runtime and starts over."""
        tail = [i for i in self.instructions if branch.target is not None and i.address >= branch.target][:40]
        called = False
        for instruction in tail:
            if instruction.flow is Flow.CALL and not called:
                called = True
            elif instruction.flow is Flow.JUMP:
                return called and instruction.target == self.begin
            elif instruction.flow is not Flow.NEXT:
                return False
        return False

    def only_growing_begins_over(self) -> bool:
        """Whether all jumps to the beginning end a tail that grows the stack."""
        back = [
            index for index, i in enumerate(self.instructions) if i.target == self.begin and i.flow is not Flow.CALL
        ]
        branches = [i for i in self.instructions[:_PREFIX_LIMIT] if i.flow is Flow.CONDITIONAL and self.grows_stack(i)]
        ends: set[int] = set()
        for branch in branches:
            assert branch.target is not None
            ends.add(
                next(n for n, i in enumerate(self.instructions) if i.address >= branch.target and i.flow is Flow.JUMP)
            )
        return set(back) <= ends
