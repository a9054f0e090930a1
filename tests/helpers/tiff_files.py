"""GeoTIFFs to test with."""

import rasterio
from rasterio.enums import ColorInterp


def write_tiff(path, bands, mask=None, alpha=False, colormap=None, **profile):
    """Bands (C, H, W) of any type; ``alpha`` says that the last one is, ``mask`` is 0 where data lack."""
    count, height, width = bands.shape
    size = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", "GTiff", **size, **profile) as file:
        if alpha:
            file.colorinterp = [*file.colorinterp[:-1], ColorInterp.alpha]
        file.write(bands)
        if colormap:
            file.write_colormap(1, colormap)
        if mask is not None:
            file.write_mask(mask)
    return path
