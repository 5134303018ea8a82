"""The context that a command passes to all functions below it."""

from __future__ import annotations

import pickle

from competition.context import Context


def test_the_default_trusts_nothing_more_and_says_nothing(capsys) -> None:
    context = Context()
    context.say("a line")
    assert context.trust == () and capsys.readouterr().out == ""
    assert context == Context() == pickle.loads(pickle.dumps(context))


def test_a_silent_and_an_indented_context_keep_the_trusted_packages() -> None:
    said: list[str] = []
    context = Context(("mine",), said.append)
    context.silent().say("nothing")
    context.indented().say("inner")
    context.indented().indented().say("innermost")
    context.say("outer")
    assert said == ["  inner", "    innermost", "outer"]
    assert context.silent().trust == context.indented().trust == ("mine",)
