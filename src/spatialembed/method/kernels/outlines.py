"""Following the pixel edges around connected parts of a label image.

Steps go from corner to corner of pixels with the part on the right hand, y pointing down::

      left | right         ahead of a step: its own pixel on the right, another on the left
    -------+-------
     from  ^               the part on the left: turn left; else on the right: straight on;
           |               else: turn right

Turning left first parts the ways where two corners of one part meet: rings never touch themselves.
"""

from __future__ import annotations

import numpy as np

from spatialembed.method.kernels.jit import compiled


@compiled
def rings(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rings around the parts of an image, parts (H + 2, W + 2) int32 with 0 all around.

    A part is connected over pixel edges; no part is 0. Returns the corners (P, 2) int32 (x, y) in
    px, ring after ring, of turns only; the end of each ring among them (R,) int64; and its part
    (R,) int32. The first ring of a part is its outer one.
    """
    height, width = parts.shape[0] - 2, parts.shape[1] - 2
    seen = np.zeros((height, width), np.bool_)  # the upper edge of the pixel
    corners = np.empty((1024, 2), np.int32)
    ends = np.empty(256, np.int64)
    owners = np.empty(256, np.int32)
    count, found = 0, 0
    for top in range(height):
        for first in range(width):
            part = parts[top + 1, first + 1]
            if part == 0 or parts[top, first + 1] == part or seen[top, first]:
                continue
            x, y, dx, dy = first, top, 1, 0
            turned = True
            while True:
                if turned:
                    if count == len(corners):
                        corners = np.concatenate((corners, np.empty_like(corners)))
                    corners[count, 0], corners[count, 1] = x, y
                    count += 1
                if dx == 1:
                    seen[y, x] = True
                x, y = x + dx, y + dy
                # Of the four pixels around the corner, in the frame of the padded image.
                right = parts[y + (1 + dy + dx) // 2, x + (1 + dx - dy) // 2]
                left = parts[y + (1 + dy - dx) // 2, x + (1 + dx + dy) // 2]
                turned = True
                if left == part:
                    dx, dy = dy, -dx
                elif right == part:
                    turned = False
                else:
                    dx, dy = -dy, dx
                if x == first and y == top and dx == 1:
                    break
            if found == len(ends):
                ends = np.concatenate((ends, np.empty_like(ends)))
                owners = np.concatenate((owners, np.empty_like(owners)))
            ends[found], owners[found] = count, part
            found += 1
    return corners[:count], ends[:found], owners[:found]
