"""Check one program against one specification, in sandboxes that the pool lends.

Which runs are needed: one for all examples and literal asserts (visible calls first; hidden
inputs are sent only after all visible answers are in), one for each stdin program, one for each
cell, and two at a time (the test's and the program's) for every other test. What counts as passed
is decided here, from decoded values; `check` compares, `runner` runs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sandbox import values
from sandbox.check import Rule, digest, matches, same_text
from sandbox.runner import Execution, Zygote
from sandbox.spec import Cell, Example, Spec, Stdio, Test, literal_calls, plain_text, show_value
from sandbox.types import ExampleKind, ExampleResult, Limits, Run, Tier, Verdict, Verification

T = TypeVar("T")
MESSAGE_CHARS = 1200


class Lender(Protocol):
    """Runs work on a zygote, retrying it once when the sandbox itself fails."""

    async def __call__(self, work: Callable[[Zygote], Awaitable[T]]) -> T:
        """Run `work` on a warm zygote."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    kind: ExampleKind
    index: int
    hidden: bool
    entry: str | None
    example: Example

    @property
    def frame(self) -> list[Any]:
        return [self.entry, self.example.args, self.example.kwargs]

    @property
    def text(self) -> str:
        parts = [_show(arg, 200) for arg in self.example.args]
        parts += [f"{key}={_show(arg, 200)}" for key, arg in self.example.kwargs.items()]
        return f"{self.entry or 'the function'}({', '.join(parts)})"


class Examiner:
    """One check of one program."""

    def __init__(
        self,
        code: str,
        spec: Spec,
        limits: Limits,
        *,
        tier: Tier,
        lend: Lender,
        lend_for_test: Lender,
        stop_early: bool = False,
    ) -> None:
        self.code = code
        self.spec = spec.marked()
        self.limits = limits
        self.tier = tier
        self.lend = lend
        self.lend_for_test = lend_for_test
        self.stop_early = stop_early
        self.results: list[ExampleResult] = []
        self.outputs: list[Any] = []
        self.failure: Run | None = None

    async def check(self) -> Verification:
        """Run everything that the specification asks for.

        Raises:
            SandboxError: when the sandbox failed twice; no verdict is given then.
        """
        began = time.monotonic()
        calls, tests = self._plan()
        if calls or not (tests or self.spec.stdio or self.spec.cells):
            await self._check_calls(calls)
        for index, pair in enumerate(self.spec.stdio):
            if not self._stopped:
                await self._check_stdio(index, pair)
        for index, cell in enumerate(self.spec.cells):
            if not self._stopped:
                await self._check_cell(index, cell)
        for index, test in tests:
            if not self._stopped:
                await self._check_test(index, test)
        return self._verification(time.monotonic() - began)

    @property
    def _stopped(self) -> bool:
        if self.failure is not None:
            return True
        return self.stop_early and any(r.checked and not r.passed for r in self.results)

    def _plan(self) -> tuple[list[_Call], list[tuple[int, Test]]]:
        entry = self.spec.entry_point
        calls: list[_Call] = []
        tests: list[tuple[int, Test]] = []
        for index, test in enumerate(self.spec.tests):
            literal = literal_calls(test.code)
            if literal is None:
                tests.append((index, test))
                continue
            entry = entry or literal[0].function
            hidden = bool(test.hidden)
            calls += [_Call("test", index, hidden, c.function, c.example) for c in literal]
        examples = [
            _Call("example", index, bool(example.hidden), entry, example)
            for index, example in enumerate(self.spec.examples)
        ]
        return examples + calls, tests

    # --- calls ---

    async def _check_calls(self, calls: list[_Call]) -> None:
        calls = [c for c in calls if not c.hidden] + [c for c in calls if c.hidden]
        seen = sum(not call.hidden for call in calls)

        async def work(zygote: Zygote) -> Run:
            job = {"mode": "calls", "code": self.code}
            execution = await zygote.begin(job, self.limits, None)
            only = seen == len(calls)
            execution.feed({"calls": [call.frame for call in calls[:seen]], "last": only})
            if seen < len(calls) and await execution.collect(seen, upto="values"):
                visible = zip(calls[:seen], execution.outcome.values, strict=True)
                if not (self.stop_early and any(self._judge(c, v)[0] for c, v in visible)):
                    rest = [call.frame for call in calls[seen:]]
                    execution.feed({"calls": rest, "last": True})
                    await execution.collect(len(calls), upto="values")
            execution.finish()
            await execution.collect(len(calls))
            return await execution.end()

        run = await self.lend(work)
        self._note_failure(run, len(run.values) < len(calls) or not calls)
        self.outputs += run.values
        judged: dict[tuple[ExampleKind, int], ExampleResult] = {}
        for place, call in enumerate(calls):
            if place < len(run.values):
                verdict, message = self._judge(call, run.values[place])
                duration = run.durations_s[place] * 1000
            elif self.stop_early and run.verdict is Verdict.OK:
                break
            else:
                verdict = run.verdict if run.verdict is not Verdict.OK else Verdict.EARLY_EXIT
                message, duration = self._why_unanswered(call, place, run), 0.0
            result = ExampleResult(
                call.index,
                call.kind,
                call.hidden,
                verdict or Verdict.OK,
                duration,
                message,
                checked=call.kind == "test" or call.example.has_output,
            )
            key = (call.kind, call.index)
            # Several asserts of one test are one result: the first that fails stands for it.
            if key not in judged or judged[key].verdict is Verdict.OK:
                judged[key] = result
        self.results += sorted(judged.values(), key=lambda r: (r.kind != "example", r.index))

    @staticmethod
    def _why_unanswered(call: _Call, place: int, run: Run) -> str:
        if place > len(run.values):
            return "not reached"
        in_program = not run.values and run.verdict in (Verdict.ERROR, Verdict.MEMORY)
        return _why(run) if in_program else f"{call.text}: {_why(run)}"

    def _judge(self, call: _Call, value: object) -> tuple[Verdict | None, str | None]:
        """None where the value is right (or nothing was expected), with a message otherwise."""
        if isinstance(value, values.CallError):
            memory = value.error_type == "MemoryError"
            text = f"{call.text} raised {value.error_type}: {plain_text(value.message, 600)}"
            return Verdict.MEMORY if memory else Verdict.ERROR, text[:MESSAGE_CHARS]
        if not call.example.has_output:
            return None, None
        expected = values.decode(call.example.output)
        if matches(value, expected, self._rule(call.example)):
            return None, None
        text = (
            f"{call.text} returned {show_value(value, 300)}, expected {show_value(expected, 300)}"
        )
        return Verdict.WRONG, text[:MESSAGE_CHARS]

    def _rule(self, part: Example | Cell) -> Rule:
        comparison = part.comparison or self.spec.comparison or "exact"
        tolerance = part.tolerance if part.tolerance is not None else self.spec.tolerance
        if isinstance(part, Cell):
            return Rule(
                comparison, tolerance, part.ignore_order, part.ignore_index, part.ignore_dtypes
            )
        return Rule(comparison, tolerance)

    def _note_failure(self, run: Run, decisive: bool) -> None:
        """A run that did not end cleanly before it had answered: nothing else needs to be run."""
        broke = run.verdict not in (Verdict.OK, Verdict.ERROR, Verdict.MEMORY)
        if run.verdict is not Verdict.OK and (broke or (decisive and not run.values)):
            self.failure = run

    # --- stdin programs ---

    async def _check_stdio(self, index: int, pair: Stdio) -> None:
        async def work(zygote: Zygote) -> Run:
            job = {"mode": "script", "code": self.code}
            execution = await zygote.begin(job, self.limits, pair.input)
            execution.finish()
            await execution.collect(0)
            return await execution.end()

        run = await self.lend(work)
        verdict, message = run.verdict, None
        given = f"stdin {show_value(pair.input, 300)}"
        if verdict is not Verdict.OK:
            message = f"{given}: {_why(run)}"
        elif run.stdout_truncated:
            verdict, message = Verdict.OUTPUT_LIMIT, f"{given}: too much output"
        elif pair.output is not None:
            tolerance = pair.tolerance if pair.tolerance is not None else self.spec.tolerance
            if not same_text(run.stdout, pair.output, tolerance):
                verdict = Verdict.WRONG
                message = (
                    f"{given} printed {show_value(run.stdout, 300)}, "
                    f"expected {show_value(pair.output, 300)}"
                )
        self.outputs.append(run.stdout if run.verdict is Verdict.OK else values.Opaque("stdout"))
        self._add("stdio", index, pair.hidden, verdict, run, message, pair.output is not None)

    # --- cells ---

    async def _check_cell(self, index: int, cell: Cell) -> None:
        async def work(zygote: Zygote) -> Run:
            job = {
                "mode": "cell",
                "code": self.code,
                "setup": cell.setup,
                "variables": cell.variables,
                "outputs": list(cell.outputs) or [v.name for v in self.spec.outputs],
            }
            execution = await zygote.begin(job, self.limits, None)
            execution.finish()
            await execution.collect(0)
            return await execution.end()

        run = await self.lend(work)
        verdict, message = run.verdict, None
        found = run.outputs or {}
        if verdict is not Verdict.OK:
            message = _why(run)
        else:
            for name, form in cell.outputs.items():
                expected = values.decode(form)
                if name not in found:
                    verdict, message = Verdict.WRONG, f"`{name}` is not defined after the program"
                elif not matches(found[name], expected, self._rule(cell)):
                    verdict = Verdict.WRONG
                    message = (
                        f"`{name}` is {show_value(found[name], 400)}, "
                        f"expected {show_value(expected, 400)}"
                    )
                if message:
                    break
        self.outputs += [found[name] for name in sorted(found)]
        self._add("cell", index, cell.hidden, verdict, run, message, bool(cell.outputs))

    # --- tests with code ---

    async def _check_test(self, index: int, test: Test) -> None:
        async def work(examiner: Zygote) -> tuple[Verdict, str | None, Run]:
            return await self.lend(lambda zygote: self._dialogue(examiner, zygote, test))

        verdict, message, run = await self.lend_for_test(work)
        self._add("test", index, test.hidden, verdict, run, message, True)

    async def _dialogue(
        self, examiner: Zygote, zygote: Zygote, test: Test
    ) -> tuple[Verdict, str | None, Run]:
        """Run a test in one sandbox against the program in another; values cross as data."""
        await examiner.abort()
        job = {"mode": "test", "code": test.code, "entry": self.spec.entry_point}
        asking = await examiner.begin(job, self.limits, None)
        answering = await zygote.begin({"mode": "calls", "code": self.code}, self.limits, None)
        dialogue = _Dialogue(asking, answering)
        await dialogue.hold()
        over = asking.outcome.done or asking.outcome.timed_out
        if not dialogue.program_failed:
            answering.finish()
            await answering.collect(len(answering.outcome.values))
        program = await answering.end()
        tester = await asking.end(kill=not over)
        return (*_test_verdict(dialogue, program, tester), program)

    # --- the outcome ---

    def _add(
        self,
        kind: ExampleKind,
        index: int,
        hidden: bool | None,
        verdict: Verdict,
        run: Run,
        message: str | None,
        checked: bool,
    ) -> None:
        text = message[:MESSAGE_CHARS] if message else None
        duration = run.duration_s * 1000
        self.results.append(
            ExampleResult(index, kind, bool(hidden), verdict, duration, text, checked)
        )

    def _verification(self, duration_s: float) -> Verification:
        spec = self.spec
        checks = [bool(e.hidden) for e in spec.examples if e.has_output]
        checks += [bool(t.hidden) for t in spec.tests]
        checks += [bool(s.hidden) for s in spec.stdio if s.output is not None]
        checks += [bool(c.hidden) for c in spec.cells if c.outputs]
        total, total_hidden = len(checks), sum(checks)
        passed = sum(result.passed for result in self.results)
        passed_hidden = sum(result.passed and result.hidden for result in self.results)
        bad = [r.verdict for r in self.results if r.verdict is not Verdict.OK]
        verdict = bad[0] if bad else Verdict.OK
        failure = self.failure
        if failure is not None and verdict is Verdict.OK:
            verdict = failure.verdict
        before = failure is not None and not failure.values
        return Verification(
            verified=total > 0 and passed == total and failure is None,
            verdict=verdict,
            passed=passed,
            total=total,
            passed_visible=passed - passed_hidden,
            total_visible=total - total_hidden,
            passed_hidden=passed_hidden,
            total_hidden=total_hidden,
            examples=tuple(self.results),
            duration_s=duration_s,
            tier=self.tier,
            outputs_digest=digest(self.outputs),
            error_type=failure.error_type if failure and before else None,
            error_message=_why(failure) if failure and before else None,
        )


class _Dialogue:
    """Carries calls from a test's sandbox to the program's and answers back."""

    def __init__(self, asking: Execution, answering: Execution) -> None:
        self.asking = asking
        self.answering = answering
        self.calls = 0
        self.program_failed = False
        self.unsupported: str | None = None
        self.last_error: str | None = None

    async def hold(self) -> None:
        """Talk until the test has ended or either side broke."""
        # The program loads first: a test that meets a broken program proves nothing.
        if not await self.answering.collect(0, upto="values"):
            self.program_failed = True
            return
        while not self.asking.outcome.done and not self.program_failed:
            frame = await self.asking.frame()
            if frame is None:
                return
            if "get" in frame or "call" in frame:
                answer = await self._ask(frame)
                if answer is None:
                    return
                self.asking.feed(answer)
                continue
            try:
                self.asking._take(frame, 0)
            except (ValueError, KeyError, TypeError) as error:
                self.asking.outcome.broken = f"malformed result: {error}"[:500]
                return

    async def _ask(self, frame: dict[str, Any]) -> dict[str, Any] | None:
        outcome = self.answering.outcome
        if "get" in frame:
            self.answering.feed({"get": str(frame["get"])})
            answer = await self.answering.frame()
            if answer is None or answer.get("name") not in ("missing", "callable", "value"):
                self.program_failed = True
                return None
            if answer["name"] == "value":
                self.calls += 1
        else:
            self.answering.feed({"calls": [frame["call"]]})
            self.calls += 1
            if not await self.answering.collect(len(outcome.values) + 1, upto="values"):
                self.program_failed = True
                return None
            value = outcome.values[-1]
            if isinstance(value, values.CallError):
                self.last_error = value.error_type
                return {"raised": [value.error_type, value.message]}
            self.last_error = None
            answer = {"value": values.encode(value)}
        if "value" in answer and values.is_opaque(_decoded(answer["value"])):
            self.unsupported = "the program returned a value that cannot leave its process"
            return None
        return answer


def _decoded(form: Any) -> Any:
    try:
        return values.decode(form)
    except ValueError:
        return values.Opaque("malformed")


def _test_verdict(dialogue: _Dialogue, program: Run, tester: Run) -> tuple[Verdict, str | None]:
    asking = dialogue.asking.outcome
    if asking.bad_test is not None:
        kind, text = asking.bad_test
        return Verdict.BAD_TEST, f"the test does not compile: {kind}: {plain_text(text, 300)}"
    if asking.unsupported or dialogue.unsupported:
        return Verdict.UNSUPPORTED, asking.unsupported or dialogue.unsupported
    broke = program.verdict not in (Verdict.OK, Verdict.ERROR, Verdict.MEMORY)
    if dialogue.program_failed or broke:
        verdict = program.verdict if program.verdict is not Verdict.OK else Verdict.EARLY_EXIT
        return verdict, _why(program)
    if tester.verdict is Verdict.OK:
        if not dialogue.calls:
            return Verdict.BAD_TEST, "the test never used the program"
        return Verdict.OK, None
    if tester.verdict is Verdict.ERROR and tester.error_type == "AssertionError":
        text = plain_text(tester.error_message or "", 600)
        return Verdict.WRONG, f"a test's assertion failed: {text}"
    if tester.verdict is Verdict.MEMORY and dialogue.last_error == "MemoryError":
        return Verdict.MEMORY, _why(tester)
    return tester.verdict, _why(tester)


def _why(run: Run) -> str:
    """How a run ended, in one line."""
    text = plain_text(run.error_message or "", 600)
    if run.verdict in (Verdict.ERROR, Verdict.MEMORY):
        return f"{run.error_type or 'Error'}: {text}" if text else str(run.error_type)
    return f"{run.word}: {text}" if text else run.word


def _show(form: Any, limit_chars: int) -> str:
    return show_value(values.decode(form), limit_chars)
