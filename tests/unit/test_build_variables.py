"""Variables, quotes and escapes in an instruction's words, as moby/buildkit's shell lexer has them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.build.language import globs
from nagaya.build.language.ast import Copy, DockerfileError, Env, Expose, Instruction, Label, Run
from nagaya.build.language.expand import expand
from nagaya.build.language.parse import parse
from nagaya.build.language.variables import Lexer

VARIABLES = {"a": "one", "b": "", "p": "/usr/local/lib/x.tar.gz", "s": "x y", "九": "nine", "star": "a*b"}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        # plain, quotes, escapes
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ('he"ll"o', "hello"),
        ("he\\'llo", "he'llo"),
        ("he\\\\llo", "he\\llo"),
        ('"he\\"llo"', 'he"llo'),
        ('"he\\nllo"', "he\\nllo"),
        ("'he\\\"llo'", 'he\\"llo'),
        ("a  b", "a  b"),
        ("trailing\\", "trailing"),
        ("'$a'", "$a"),
        ('"$a"', "one"),
        ("\\$a", "$a"),
        ('"\\$a"', "$a"),
        # names
        ("$a", "one"),
        ("x${a}y", "xoney"),
        ("$a.$b.", "one.."),
        ("$ab", ""),
        ("$九", "nine"),
        ("$", "$"),
        ("$ a", "$ a"),
        ("$1a", "a"),
        ("$$a", "a"),
        ("${a", "!syntax error: missing '}'"),
        ("${a:", "!syntax error: missing '}'"),
        ("${}", None),
        ("${:x}", None),
        ("${{a}", None),
        ("$'a'", "$a"),
        # defaults
        ("${a:-x}", "one"),
        ("${b:-x}", "x"),
        ("${b-x}", ""),
        ("${none:-x}", "x"),
        ("${none-x}", "x"),
        ("${none:-}", ""),
        ("${a:+x}", "x"),
        ("${b:+x}", ""),
        ("${b+x}", "x"),
        ("${none+x}", ""),
        ("${none:-${b:-$a}}", "one"),
        ("${none:-'q $a'}", "q $a"),
        ("${none:-\\}}", "}"),
        ("${a:?x}", "one"),
        ("${b?x}", ""),
        ("${b:?is gone}", "!b: is gone"),
        ("${none?}", "!none: is not allowed to be unset"),
        ("${b:?}", "!b: is not allowed to be empty"),
        # patterns
        ("${p#*/}", "usr/local/lib/x.tar.gz"),
        ("${p##*/}", "x.tar.gz"),
        ("${p%.*}", "/usr/local/lib/x.tar"),
        ("${p%%.*}", "/usr/local/lib/x"),
        ("${p#/usr}", "/local/lib/x.tar.gz"),
        ("${p#usr}", "/usr/local/lib/x.tar.gz"),
        ("${p%gz}", "/usr/local/lib/x.tar."),
        ("${p%.?z}", "/usr/local/lib/x.tar"),
        ("${a##*}", ""),
        ("${a#*}", "one"),
        ("${none#x}", ""),
        ("${star%\\**}", "a"),
        ("${p/usr/opt}", "/opt/local/lib/x.tar.gz"),
        ("${p//l/L}", "/usr/LocaL/Lib/x.tar.gz"),
        ("${p//\\//:}", ":usr:local:lib:x.tar.gz"),
        ("${p/l*b/X}", "/usr/X/x.tar.gz"),
        ("${p//o*}", None),
        ("${a/n/$p}", "o/usr/local/lib/x.tar.gze"),
        ("${a/n/}", "oe"),
        ("${a//?/-}", "---"),
        ("${a/x/y}", "one"),
        # what is not there
        ("${a:#x}", "!unsupported modifier (:#) in substitution"),
        ("${a^^}", "!unsupported modifier (^) in substitution"),
        ("${a:}", "!unsupported modifier (:}) in substitution"),
        ("${a#\\x}", "!invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ("'x", "!unexpected end of statement while looking for matching single-quote"),
        ('"x', "!unexpected end of statement while looking for matching double-quote"),
        ("${a:-x", "!syntax error: missing '}'"),
        ("${a/x", "!syntax error: missing '/' in ${}"),
    ],
)
def test_a_word(word: str, value: str | None) -> None:
    """A value of None: refused; of "!...": refused with that message."""
    lexer = Lexer(VARIABLES)
    if value is not None and not value.startswith("!"):
        assert lexer.word(word) == value
        return
    with pytest.raises(DockerfileError) as caught:
        lexer.word(word)
    assert caught.value.message.startswith(f'failed to process "{word}": ')
    assert value is None or caught.value.message.endswith(value[1:])


def test_another_escape() -> None:
    lexer = Lexer(VARIABLES, "`")
    assert lexer.word("C:\\x`$a\\$a") == "C:\\x$a\\one"
    assert lexer.word('"`"\\"') == '"\\'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b", ["a", "b"]),
        ("$s", ["x", "y"]),
        ('"$s"', ["x y"]),
        ("a\\ b c", ["a b", "c"]),
        ("$none", []),
        ('""', []),
        (" $a$s ", ["onex", "y"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert Lexer(VARIABLES).words(text) == words


def test_what_is_unset_can_stay() -> None:
    lexer = Lexer({"a": "1"}, keep_unset=True, raw_quotes=True, raw_escapes=True)
    text = "$a $b ${b} ${b:-x} '$c' \\$"
    assert lexer.word(text) == "1 $b ${b} ${b:-x} '$c' \\$"


# hostile ones


def test_a_value_cannot_grow_without_end() -> None:
    value = "x" * 1000
    for _ in range(3):
        value = Lexer({"a": value}).word("$a" * 10)
    with pytest.raises(DockerfileError, match="becomes longer than"):
        Lexer({"a": value}).word("$a" * 10)
    with pytest.raises(DockerfileError, match="becomes longer than"):
        Lexer({"a": "x" * 60000}).word("${a//x/" + "y" * 1000 + "}")


def test_a_pattern_has_a_bound() -> None:
    for how in ("#", "%%", "//"):
        with pytest.raises(DockerfileError, match="pattern is too long"):
            Lexer({"a": "a" * 300_000}).word("${a" + how + "*a" * 20 + "/}")
    assert Lexer({"a": "a" * 300_000}).word("${a//" + "a" * 100 + "/}") == ""


def test_nesting_has_a_bound() -> None:
    with pytest.raises(DockerfileError, match="nested too deeply"):
        Lexer({}).word("${a:-" * 60000 + "}" * 60000)


@pytest.mark.parametrize("how", ["#", "##", "%", "%%", "/", "//"])
def test_a_hostile_pattern_takes_no_longer_than_another(how: str) -> None:
    pattern = "*a" * 15 + "*b"
    started = time.process_time()
    Lexer({"a": "a" * 400}).word("${a" + how + pattern + ("/x}" if "/" in how else "}"))
    assert time.process_time() - started < 20  # by trying again it would be years


WORDS = st.text("ab\n", max_size=8)
PATTERNS = st.text("ab*?", max_size=6)


def expression(pattern: str, star: str) -> re.Pattern[str]:
    return re.compile("".join({"*": star, "?": "."}.get(c, c) for c in pattern))


@given(WORDS, PATTERNS)
def test_prefixes_are_those_of_regular_expressions(word: str, pattern: str) -> None:
    for longest, star in ((True, ".*"), (False, ".*?")):
        match = expression(pattern, star).match(word)
        expected = word[match.end() :] if match else word
        assert globs.without_prefix(word, globs.parse(pattern), longest) == expected


@given(WORDS, PATTERNS)
def test_suffixes_are_prefixes_from_behind(word: str, pattern: str) -> None:
    for longest in (True, False):
        ends = [n for n in range(len(word) + 1) if expression(pattern, ".*").fullmatch(word[n:])]
        expected = word[: min(ends) if longest else max(ends)] if ends else word
        assert globs.without_suffix(word, globs.parse(pattern), longest) == expected


@given(WORDS, PATTERNS)
def test_replacing_is_that_of_regular_expressions(word: str, pattern: str) -> None:
    made = expression(pattern, ".*")
    parsed = globs.parse(pattern)
    assert globs.replace(word, parsed, "-", False, 1000) == made.sub("-", word, count=1)
    if made.match("") is None:  # of empty matches beside others Go and Python think differently
        assert globs.replace(word, parsed, "-", True, 1000) == made.sub("-", word)


@given(st.text("ab$\\'\"{}:-+#%/*? <\t`", max_size=30))
def test_any_word_ends_in_a_value_or_in_a_complaint(word: str) -> None:
    for escape in "\\`":
        try:
            Lexer({"a": "x/y b", "b": ""}, escape).words(word)
        except DockerfileError as error:
            assert error.message.startswith("failed to process")


# instructions


def expanded(text: str, variables: dict[str, str]) -> Instruction:
    return expand(parse(f"FROM a\n{text}\n".encode()).stages[0].instructions[0], variables)


def test_which_instructions_have_variables() -> None:
    env = expanded("ENV $a=\"$b c\" d='$a'", {"a": "x", "b": "y"})
    assert isinstance(env, Env)
    assert [str(pair) for pair in env.pairs] == ["x=y c", "d=$a"]
    label = expanded("LABEL old  value $a", {"a": "x"})
    assert isinstance(label, Label) and str(label.pairs[0]) == "old=value x"
    run = expanded("RUN echo $a", {"a": "x"})
    assert isinstance(run, Run) and run.command.words == ("echo $a",)
    expose = expanded("EXPOSE $p 1", {"p": "80 443/udp"})
    assert isinstance(expose, Expose) and expose.ports == ("80", "443/udp", "1")
    copy = expanded(
        'COPY --chown=$u --chmod=$m --from=$a $a/* <<E /$a/\n$a "$a" \\$a\nE', {"a": "x", "u": "1"}
    )
    assert isinstance(copy, Copy)
    assert (copy.chown, copy.chmod, copy.origin) == ("1", "", "$a")
    assert (copy.sources, copy.destination) == (("x/*",), "/x/")
    assert copy.inline[0].text == 'x "x" $a\n'
    quoted = expanded("COPY <<'E' /x\n$a\nE", {"a": "x"})
    assert isinstance(quoted, Copy) and quoted.inline[0].text == "$a\n"


def test_a_complaint_has_the_line() -> None:
    with pytest.raises(DockerfileError) as caught:
        expanded("\n\nENV a=${x", {})
    assert caught.value.line == 4
