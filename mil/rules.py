"""Names of the rules of selection, in the order in which they are shown; light, for the command line."""

from typing import Literal, get_args

Rule = Literal["last", "val", "test"]
RULES: tuple[Rule, ...] = get_args(Rule)
