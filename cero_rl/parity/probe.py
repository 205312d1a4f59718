"""The probe itself: prompts, questions, and what the answers are compared with.

A few prompts of the tokenizer's own making, one of them longer than a block of a prefix cache,
several answers each. Everything is asked at the temperature of the training; one question more at
another temperature tells raw log-probabilities from processed ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cero_rl.errors import ConfigError
from cero_rl.parity.judge import (
    CAUSES,
    MOST_SIGMAS,
    Finding,
    ParityReport,
    PromptResult,
    Scored,
    better_sigmas,
    drawn_sigmas,
    gap_of,
    healthy_bound,
)
from cero_rl.parity.questions import PROMPTS, Asked, ParityOptions, ask, probe_texts
from cero_rl.parity.samplers import Facts, Ids, Sampler
from cero_rl.parity.scorers import ModelScorer, Scorer

_COOL, _WARM = 0.5, 1.0
_GRID = tuple(np.round(np.geomspace(0.25, 4.0, 33), 4).tolist())


def _row(scored: Sequence[Scored]) -> npt.NDArray[np.float64]:
    return np.concatenate([s.logps for s in scored])


def check_parity(
    sampler: Sampler,
    scorer: Scorer,
    options: ParityOptions | None = None,
    *,
    prompts: Sequence[Ids] | None = None,
    others: Mapping[str, Scorer] | None = None,
) -> ParityReport:
    """Asks the sampler, scores its answers, and says what differs.

    `prompts` are token ids i64[m]; default: made from the tokenizer of a ModelScorer. `others` are
    policies that the sampler must not run, by name ("base", "previous"): they put a name to a gap,
    and find one that is smaller than rounding. Raises ConfigError, EngineError where nothing could
    be asked.
    """
    return _Probe(sampler, scorer, options or ParityOptions(), prompts, others or {}).report()


class _Probe:
    def __init__(
        self,
        sampler: Sampler,
        scorer: Scorer,
        options: ParityOptions,
        prompts: Sequence[Ids] | None,
        others: Mapping[str, Scorer],
    ) -> None:
        self._begun = time.monotonic()
        self._sampler, self._scorer, self._options = sampler, scorer, options
        self._others = others
        self._model = scorer if isinstance(scorer, ModelScorer) else None
        self._tokenizer = self._model.tokenizer if self._model is not None else None
        if prompts is None:
            if self._tokenizer is None:
                raise ConfigError("parity: a scorer without a tokenizer needs prompts (token ids)")
            prompts = probe_texts(self._tokenizer, PROMPTS)
        if self._model is not None:
            room = self._model.positions - options.tokens
            prompts = [prompt[: max(room, 1)] for prompt in prompts]
        self._prompts = prompts
        self._facts: Facts = sampler.facts()
        own = self._model.dtype if self._model is not None else "float32"
        self._dtype = options.dtype or self._facts.dtype or own
        self._found: list[Finding] = []
        self._gaps_of_others: dict[str, float] = {}
        # shown in the end, whatever was reached
        self._rounding: float | None = None
        self._bound = options.bound or healthy_bound(self._dtype, options.temperature, None)
        self._results: tuple[PromptResult, ...] = ()
        self._sigmas: float | None = None
        self._reports = self._same_text = self._checksum = "not told"

    def _find(self, code: str, text: str) -> None:
        assert code in CAUSES
        self._found.append(Finding(code, text))

    def report(self) -> ParityReport:
        asked = ask(self._sampler, self._prompts, self._options)
        if self._is_fit(asked):
            self._compare(asked)
        self._compare_text(asked)
        self._compare_facts()
        return ParityReport(
            sampler=self._sampler.name,
            dtype=self._dtype,
            temperature=self._options.temperature,
            bound=self._bound,
            rounding=self._rounding,
            prompts=self._results,
            findings=tuple(self._found),
            others=self._gaps_of_others,
            sigmas=self._sigmas,
            reports=self._reports,
            tokenizer=self._same_text,
            weights=self._facts.weights or "not told",
            checksum=self._checksum,
            seconds=round(time.monotonic() - self._begun, 2),
        )

    def _is_fit(self, asked: Asked) -> bool:
        """Can these answers be scored at all?"""
        if any(not own or any(not a.token_ids.size for a in own) for own in asked.answers):
            self._find("no_answer", "it gave a prompt no tokens")
            return False
        reported = asked.reported
        rows = None if self._model is None else self._model.vocabulary
        most = max(int(a.token_ids.max()) for _, a in asked.pairs())
        if rows is not None and most >= rows:
            self._find(
                "other_vocabulary", f"it answered with token {most}, the model has {rows} rows"
            )
            return False
        if not np.isfinite(reported).all():
            missing = int((~np.isfinite(reported)).sum())
            self._find(
                "not_finite", f"{missing} of {reported.size} log-probabilities are not finite"
            )
            return False
        if reported.size > 1 and np.ptp(reported) == 0.0:
            self._find(
                "zero_filled",
                f"all {reported.size} log-probabilities are {reported[0]:g}; nothing was measured",
            )
            return False
        return True

    def _score(self, scorer: Scorer, asked: Asked, temperature: float) -> list[Scored]:
        return [scorer.score(p, a.token_ids, [temperature])[0] for p, a in asked.pairs()]

    def _compare(self, asked: Asked) -> None:
        options = self._options
        wanted_at = options.temperature if options.logps == "processed" else 1.0
        drawn = self._score(self._scorer, asked, options.temperature)
        wanted = (
            drawn
            if wanted_at == options.temperature
            else self._score(self._scorer, asked, wanted_at)
        )
        self._measure_rounding(asked, wanted, wanted_at)
        means = asked.means(wanted)
        at, results = 0, []
        for prompt, own, mean in zip(self._prompts, asked.answers, means):
            here = wanted[at : at + len(own)]
            at += len(own)
            gap = gap_of(_row(here), np.concatenate([a.logps for a in own]))
            sampled = sum(a.token_ids.size for a in own)
            results.append(PromptResult(prompt.size, sampled, gap, mean <= self._bound))
        self._results = tuple(results)
        self._sigmas = drawn_sigmas(drawn)
        healthy = all(result.healthy for result in results)
        self._look_at_others(asked, _row(wanted), wanted_at, healthy)
        if not healthy and not self._found:
            self._explain(asked, max(means))
        if healthy and self._sigmas is not None and abs(self._sigmas) > MOST_SIGMAS:
            what = "likelier" if self._sigmas > 0 else "less likely"
            self._find(
                "not_drawn_so",
                f"log-probabilities agree, but its tokens are {what} by {abs(self._sigmas):.0f} "
                f"sigma than temperature {options.temperature:g} draws; top_p, top_k, a "
                "repetition penalty or another temperature is set on its side",
            )
        if healthy:
            self._tell_raw()

    def _measure_rounding(self, asked: Asked, wanted: list[Scored], temperature: float) -> None:
        if self._options.bound is not None or self._model is None or not self._options.rounding:
            return
        if self._dtype == "float32" or self._model.dtype != self._dtype:
            return
        with self._model.in_float32():
            exact = self._score(self._scorer, asked, temperature)
        at, means = 0, []
        for own in asked.answers:
            rows = slice(at, at + len(own))
            means.append(gap_of(_row(wanted[rows]), _row(exact[rows])).mean)
            at += len(own)
        self._rounding = max(means)
        self._bound = healthy_bound(self._dtype, self._options.temperature, self._rounding)

    def _look_at_others(
        self, asked: Asked, wanted: npt.NDArray[np.float64], temperature: float, healthy: bool
    ) -> None:
        """Does another policy explain what was reported, or explain it better?"""
        rows: dict[str, npt.NDArray[np.float64]] = {}
        for name, other in self._others.items():
            scored = self._score(other, asked, temperature)
            rows[name] = _row(scored)
            self._gaps_of_others[name] = max(asked.means(scored))
            if self._model is None or not isinstance(other, ModelScorer) or healthy:
                continue
            if _same_shape(self._model, other):
                with self._model.with_head_of(other):
                    mixed = self._score(self._scorer, asked, temperature)
                rows[f"head of {name}"] = _row(mixed)
                self._gaps_of_others[f"head of {name}"] = max(asked.means(mixed))
        if self._model is not None and hasattr(self._model.model, "disable_adapter"):
            with self._model.without_adapter():
                plain = self._score(self._scorer, asked, temperature)
            rows["without adapter"] = _row(plain)
            self._gaps_of_others["without adapter"] = max(asked.means(plain))
        if not rows:
            return
        best = min(rows, key=lambda name: self._gaps_of_others[name])
        sigmas = better_sigmas(asked.reported, wanted, rows[best])
        fits = self._gaps_of_others[best] <= self._bound
        if fits and (not healthy or (sigmas is not None and sigmas > MOST_SIGMAS)):
            said = "" if sigmas is None else f", better by {sigmas:.0f} sigma"
            self._find(
                _code_of(best),
                f"what it reports is that of {best!r} (gap {self._gaps_of_others[best]:.3g}{said})",
            )

    def _explain(self, asked: Asked, gap: float) -> None:
        """Puts a name to a gap that no other policy explains."""
        options = self._options
        at_all = [self._scorer.score(p, a.token_ids, _GRID) for p, a in asked.pairs()]
        by_temperature = {
            t: max(asked.means([row[i] for row in at_all])) for i, t in enumerate(_GRID)
        }
        best = min(by_temperature, key=lambda t: by_temperature[t])
        raw_fits = by_temperature[_WARM] <= self._bound
        if raw_fits and options.logps == "processed":
            self._find(
                "raw_logps",
                f"gap {gap:.3g} at temperature {options.temperature:g}, "
                f"{by_temperature[_WARM]:.3g} before it: it reports raw log-probabilities; "
                "vLLM: logprobs_mode=processed_logprobs",
            )
            return
        if options.logps == "raw":
            (processed,) = [max(asked.means(self._score(self._scorer, asked, options.temperature)))]
            if processed <= self._bound:
                self._find("processed_logps", "it reports log-probabilities after temperature")
                return
        # between two points of the grid the gap is at most half a step's
        if by_temperature[best] < gap / 5.0:
            self._find(
                "other_temperature",
                f"gap {gap:.3g} at temperature {options.temperature:g}, only "
                f"{by_temperature[best]:.3g} at {best:g}: it works at about that one",
            )
            return
        again = ask(self._sampler, self._prompts, options, uncached=True)
        scored = self._score(self._scorer, again, options.temperature)
        if max(again.means(scored)) <= self._bound:
            self._find(
                "stale_prefix_cache",
                f"gap {gap:.3g} on what it has cached, {max(again.means(scored)):.3g} on what it "
                "has not: its prefix cache is older than its weights; reset it after a sync",
            )
            return
        self._find(
            "other_weights",
            f"gap {gap:.3g}, bound {self._bound:.3g}: it runs other weights, or computes otherwise",
        )

    def _tell_raw(self) -> None:
        """What it reports at a temperature other than 1."""
        options, prompt = self._options, self._prompts[0]
        cool = _COOL if options.temperature == _WARM else options.temperature
        answers = self._sampler.sample(
            prompt,
            answers=options.answers,
            tokens=options.tokens,
            temperature=cool,
            seed=options.seed,
        )
        asked = Asked([prompt], [answers])
        if not answers or any(not a.token_ids.size for a in answers):
            return
        rows = [self._scorer.score(prompt, a.token_ids, [cool, _WARM]) for a in answers]
        processed, raw = (asked.means([row[i] for row in rows])[0] for i in (0, 1))
        if min(processed, raw) <= healthy_bound(self._dtype, cool, self._rounding):
            self._reports = "processed" if processed < raw else "raw"

    def _compare_text(self, asked: Asked) -> None:
        """Does the sampler cut text into the tokens that the model's tokenizer makes of it, and
        write its own tokens as that does?"""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return
        compared = 0
        for prompt in self._prompts:
            text = tokenizer.decode(prompt)
            wanted = np.array(tokenizer.encode(text), dtype=np.int64)
            told = self._sampler.encode(text)
            if told is None:
                break
            compared += 1
            if not np.array_equal(told, wanted):
                self._same_text = "other"
                self._find(
                    "other_tokenizer",
                    f"it makes {told[:8].tolist()} of {text[:20]!r}, the model's tokenizer "
                    f"{wanted[:8].tolist()}",
                )
                return
        for _, answer in asked.pairs():
            if answer.text is None:
                continue
            compared += 1
            ids = answer.token_ids.tolist()
            written = {tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)}
            if answer.text.strip() not in {text.strip() for text in written}:
                self._same_text = "other"
                self._find(
                    "other_tokenizer",
                    f"it writes its tokens {ids[:8]} as {answer.text[:20]!r}, the model's "
                    f"tokenizer as {min(written)[:20]!r}",
                )
                return
        self._same_text = "same" if compared else "not told"

    def _compare_facts(self) -> None:
        facts, wanted = self._facts, self._options.version
        if wanted is not None and facts.weights != wanted:
            self._find(
                "other_version",
                f"it holds the weights {facts.weights or '(not told)'}, wanted {wanted}",
            )
        if facts.checksum is None or self._model is None or self._model.dtype != facts.dtype:
            return
        own = self._model.checksum()
        if own is None:
            return
        self._checksum = "same" if own == facts.checksum else "other"
        if own != facts.checksum:
            self._find(
                "other_checksum",
                f"checksum {facts.checksum} of {facts.weights}, the wanted weights have {own}",
            )


def _same_shape(one: ModelScorer, other: ModelScorer) -> bool:
    heads = [s.model.get_output_embeddings().weight for s in (one, other)]
    return heads[0].shape == heads[1].shape and heads[0].dtype == heads[1].dtype


def _code_of(policy: str) -> str:
    if policy.startswith("head of "):
        return "stale_head"
    named = {"without adapter": "adapter_not_applied", "base": "base_model"}
    return named.get(policy, "previous_weights")
