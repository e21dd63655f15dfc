"""Container ids and names: one grammar each, and a generator (adjective_surname)."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable

from nagaya.errors import AlreadyExists, InvalidArgument

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_ID = re.compile(r"[0-9a-f]{64}")
_LONGEST = 255  # NAME_MAX: a volume's name is a directory

_ADJECTIVES = (
    "able airy amber apt awake bold brave breezy bright brisk calm candid careful cheery civil clear "
    "clever cordial cosy crisp curious daring deft eager early earnest easy exact fair fleet fond frank "
    "fresh gallant gentle glad golden grand handy hardy hearty honest humble jolly jovial keen kind "
    "lively loyal lucid lucky mellow merry mild modest neat nimble noble open patient placid plucky "
    "polite prompt proud quick quiet ready robust rosy serene sharp silent sincere smart snug sober solid "
    "spry stable steady stoic sunny sure swift tender tidy tranquil trusty upbeat valiant vivid warm wise "
    "witty zesty"
).split()

_SURNAMES = (
    "abel agnesi alhazen ampere anning archimedes aryabhata avogadro babbage banach bardeen bell "
    "bernoulli bohr boltzmann boole born bose brahe brahmagupta cantor carson cauchy chandrasekhar church "
    "cori coulomb curie dalton darwin davy descartes dijkstra dirac edison einstein elion erdos euclid "
    "euler faraday fermat fermi feynman fibonacci fischer fourier franklin fukui galileo galois gauss "
    "germain godel goeppert goldbach hahn halley hamilton hawking heisenberg helmholtz herschel hertz "
    "higgs hilbert hodgkin hooke hopper hubble huygens hypatia joliot joule kepler khayyam khorana "
    "kirchhoff kovalevskaya lagrange lamarr lamport landau laplace lavoisier leavitt leeuwenhoek leibniz "
    "levi linnaeus lovelace mandelbrot marconi maxwell mayer mcclintock meitner mendel mendeleev "
    "mirzakhani mitchell morse nagaoka nakaya nash neumann newton nightingale nobel noether ohm pascal "
    "pasteur pauli pauling payne planck poincare ptolemy ramanujan raman rayleigh ride riemann ritchie "
    "rubin russell rutherford sagan salam sanger seki shannon snow somerville swanson takamine terada "
    "tesla thales thompson torvalds turing volta wallace watt wiles wilson wright wu yukawa zu"
).split()


def new_id() -> str:
    """A container, exec or network id: 64 hexadecimal digits. One that is all digits in its first
    12 is not given out: such a short id would be taken for a number (a uid, a port) elsewhere."""
    while True:
        found = os.urandom(32).hex()
        if not found[:12].isdigit():
            return found


def is_id(text: str) -> bool:
    """Has the text the form of an id?"""
    return _ID.fullmatch(text) is not None


def check_name(name: str) -> str:
    """A name by Docker's grammar, without a leading slash. Raises InvalidArgument."""
    bare = name.removeprefix("/")
    if _NAME.fullmatch(bare) is None or len(bare) > _LONGEST:
        raise InvalidArgument(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", subject="name"
        )
    return bare


def invent_name(taken: Callable[[str], bool]) -> str:
    """A free adjective_surname; a digit is appended when the first tries are taken."""
    for attempt in range(1000):
        name = f"{random.choice(_ADJECTIVES)}_{random.choice(_SURNAMES)}"
        if attempt > 5:
            name += str(random.randrange(10 ** min(attempt // 5, 9)))
        if not taken(name):
            return name
    raise AlreadyExists("no free container name was found", subject="name")


def conflict(name: str, holder: str) -> AlreadyExists:
    """dockerd's words for a name that is taken by container `holder`."""
    return AlreadyExists(
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
        "You have to remove (or rename) that container to be able to reuse that name.",
        subject="name",
    )
