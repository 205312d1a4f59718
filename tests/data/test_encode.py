"""Prompts -> tokens with a real, tiny character-level tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cero_rl.config.data import DataConfig
from cero_rl.data.encode import encode_prompts
from cero_rl.data.prompts import Prompt, make_prompt
from cero_rl.errors import DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+=?!:<>\n "
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}{% if "
    "add_generation_prompt %}bot:{% endif %}"
)


def tokenizer(template: str | None = None, frame: bool = False) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[BOS]", "[EOS]", *LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    if frame:
        core.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]",
            special_tokens=[("[BOS]", vocabulary["[BOS]"]), ("[EOS]", vocabulary["[EOS]"])],
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]"
    )
    made.chat_template = template
    return made


def decode(tok: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    return "".join(tok.convert_ids_to_tokens(ids.tolist()))


def text(value: str) -> Prompt:
    return make_prompt(value, "1", "s", {})


def chat(*pairs: tuple[str, str]) -> Prompt:
    return make_prompt([{"role": r, "content": c} for r, c in pairs], "1", "s", {})


def shown(prompt: Prompt, tok: PreTrainedTokenizerFast, **options: object) -> str:
    encoded = encode_prompts([prompt], tok, DataConfig(source="x", **options))
    assert encoded.tokens[0].dtype == np.int64
    assert encoded.kept == [0]
    return decode(tok, encoded.tokens[0])


def test_auto_is_the_template_where_the_tokenizer_has_one() -> None:
    assert shown(text("1+1"), tokenizer(TEMPLATE), prompt_suffix="=") == "user:1+1=\nbot:"
    assert shown(text("1+1"), tokenizer(TEMPLATE), system_prompt="add", prompt_suffix="=") == (
        "system:add\nuser:1+1=\nbot:"
    )
    assert shown(text("1+1"), tokenizer(), prompt_suffix="=") == "1+1="
    never = {"chat_template": "never", "prompt_suffix": "="}
    assert shown(text("1+1"), tokenizer(TEMPLATE), **never) == "1+1="
    encoded = encode_prompts(
        [text("a"), chat(("user", "b"))], tokenizer(TEMPLATE), DataConfig(source="x")
    )
    assert encoded.templated == 2


@pytest.mark.covers("text that is templated already")
def test_text_that_is_templated_already_is_refused_under_auto() -> None:
    tok = tokenizer(TEMPLATE)
    with pytest.raises(DataError, match=r"holds '\[EOS\]', a special token.*: never"):
        shown(text("user:hi[EOS]"), tok)
    assert shown(text("user:hi[EOS]"), tok, chat_template="never").startswith("user:hi")


def test_text_is_left_as_it_is() -> None:
    assert shown(text("1+1"), tokenizer(), system_prompt="add") == "add\n\n1+1"


def test_an_empty_system_prompt_leaves_no_blank_lines_in_text() -> None:
    assert shown(text("1+1"), tokenizer(), system_prompt="") == "1+1"
    assert shown(text("1+1"), tokenizer(TEMPLATE), system_prompt="") == "system:\nuser:1+1\nbot:"


def test_begin_token_stays_and_end_token_goes() -> None:
    assert shown(text("ab"), tokenizer(frame=True)) == "[BOS]ab"


def test_a_begin_token_in_the_text_is_not_doubled() -> None:
    tok = tokenizer(frame=True)
    assert shown(text("[BOS]ab"), tok) == "[BOS]ab"
    assert shown(text("[BOS][BOS]ab"), tok).count("[BOS]") == 3, "left as it was asked for"


def test_messages_use_the_template_without_more_special_tokens() -> None:
    tok = tokenizer(TEMPLATE, frame=True)
    assert shown(chat(("user", "hi")), tok, prompt_suffix="!") == "user:hi!\nbot:"
    assert shown(chat(("user", "hi")), tok, system_prompt="be") == "system:be\nuser:hi\nbot:"
    assert (
        shown(chat(("system", "own"), ("user", "hi")), tok, system_prompt="be")
        == "system:own\nuser:hi\nbot:"
    )
    assert shown(text("hi"), tok, chat_template="always") == "user:hi\nbot:"
    assert shown(chat(("user", "hi")), tok, enable_thinking=False) == "user:hi\n<no>bot:"
    assert shown(chat(("user", "hi")), tok, enable_thinking=True) == "user:hi\nbot:"


@pytest.mark.covers("words that the chat template does not know")
def test_further_words_for_the_template() -> None:
    tok = tokenizer(
        "{{ messages[0]['content'] }}{% if effort is defined %}:{{ effort }}{% endif %}"
    )
    assert shown(text("hi"), tok, chat_template_kwargs={"effort": "low"}) == "hi:low"
    with pytest.raises(DataError, match="the tokenizer's chat template knows no 'thinking'"):
        shown(text("hi"), tok, chat_template_kwargs={"thinking": False})


def test_never_joins_contents() -> None:
    assert (
        shown(chat(("system", "a"), ("user", "b")), tokenizer(TEMPLATE), chat_template="never")
        == "a\n\nb"
    )


@pytest.mark.covers("no chat template")
def test_no_template() -> None:
    with pytest.raises(DataError, match="no chat template, but the prompts are chat messages"):
        shown(chat(("user", "hi")), tokenizer())
    with pytest.raises(DataError, match="'always'"):
        shown(text("hi"), tokenizer(), chat_template="always")


def test_template_that_refuses() -> None:
    with pytest.raises(DataError, match=r"refuses roles \['user'\] \(only bots\)"):
        shown(chat(("user", "hi")), tokenizer("{{ raise_exception('only bots') }}"))


@pytest.mark.covers("prompt too long")
def test_overlong() -> None:
    prompts = [text("a"), text("abcdef"), text("bc")]
    tok = tokenizer()
    with pytest.raises(DataError, match=r"number 1.* 6 tokens.*max_prompt_tokens = 3"):
        encode_prompts(prompts, tok, DataConfig(source="x", max_prompt_tokens=3))
    encoded = encode_prompts(
        prompts, tok, DataConfig(source="x", max_prompt_tokens=3, overlong_prompt="drop")
    )
    assert encoded.kept == [0, 2]
    assert (encoded.overlong, encoded.first_overlong) == (
        1,
        f"prompt {prompts[1].key} has 6 tokens",
    )
    assert [decode(tok, ids) for ids in encoded.tokens] == ["a", "bc"]
    with pytest.raises(DataError, match="all 1 prompts are longer"):
        encode_prompts(
            prompts[1:2], tok, DataConfig(source="x", max_prompt_tokens=3, overlong_prompt="drop")
        )
