"""Plots of a study: `rows` and `space_rows` compute numbers, the modules `draw_...` draw them.

`catalog` names them all; `style` is the one look that they share, `marks` and `ticks` are their
common parts.
"""
