"""Plots of a study: `rows` and `space_rows` compute numbers, `draw` and `draw_space` draw them.

`catalog` names them all; `style` is the one look that they share.
"""
