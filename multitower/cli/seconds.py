"""The type of options that are a time."""

from __future__ import annotations

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """A time: seconds as a plain number, or a duration with a unit as in the configuration, such as `500ms` or `2m`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns seconds.

        Raises:
            click.BadParameter: it is not a duration, or not in the range.
        """
        try:
            seconds = float(value)
        except ValueError:
            seconds = self._parse(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a duration.", param, ctx)
        return super().convert(seconds, param, ctx)

    def _parse(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from multitower.supervisor.config.units import parse_duration

        try:
            return parse_duration(value)
        except ValueError:
            self.fail(
                f"{value!r} is not a duration: give seconds, as in 5, or a unit, as in 500ms, 5s, 2m or 1h.", param, ctx
            )
