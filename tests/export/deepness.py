"""How the QGIS plugin Deepness reads an ONNX file and its outputs, written down as facts.

Source: qgis-plugin-deepness, `processing/models/{model_base,segmentor,detector}.py` and
`deepness_dockwidget.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


class Deepness:
    """A model file as the plugin opens it."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (self.input,) = self.session.get_inputs()
        self.outputs = self.session.get_outputs()
        self.entries = self.session.get_modelmeta().custom_metadata_map

    def read(self, key: str) -> Any:
        return json.loads(self.entries[key])

    @property
    def tile(self) -> int:
        """The side goes into a spin box, which takes a number only; the sides of the output must be equal."""
        side = self.input.shape[-1]
        assert isinstance(side, int)
        shape = self.outputs[0].shape
        assert len(shape) == 3 or shape[2] == shape[3]
        return side

    @property
    def batch(self) -> int | None:
        """Fixed number of tiles; None lets the user choose it."""
        count = self.input.shape[0]
        return None if isinstance(count, str) else count

    def class_names(self) -> list[list[str]]:
        """Names by output; keys must be 0, 1, 2 ..."""
        given = self.read("class_names")
        outputs = [given] if isinstance(given, dict) else given
        names = []
        for output in outputs:
            pairs = sorted(output.items(), key=lambda pair: int(pair[0]))
            assert [int(key) for key, _ in pairs] == list(range(len(pairs)))
            names.append([name for _, name in pairs])
        return names

    def run(self, tiles: np.ndarray) -> list[np.ndarray]:
        """Outputs for uint8 tiles (B, H, W, C)."""
        channels = self.input.shape[-3]
        values = np.float32(tiles[..., :channels] / 255.0)
        mean, std = (np.float32(self.read(f"standardization_{key}")) for key in ("mean", "std"))
        images = np.transpose((values - mean) / std, (0, 3, 1, 2))
        return self.session.run(None, {self.input.name: images.astype(np.float32)})

    def masks(self, tiles: np.ndarray) -> list[np.ndarray]:
        """Labels (B, H, W) of every output of a segmentor."""
        results = self.run(tiles)
        for result in results:
            result[result < self.read("seg_thresh")] = 0
        return [result.argmax(1) for result in results]

    def boxes(self, tile: np.ndarray) -> list[tuple[float, ...]]:
        """Class, score, x, y, long side, short side, angle (0..pi) of boxes above `det_conf`, before NMS."""
        (result,) = self.run(tile[None])
        found = []
        for column in result[0].T:
            x, y, w, h, *scores, angle = column
            if max(scores) >= self.read("det_conf"):
                turned = angle if w > h else angle + np.pi / 2
                found.append(
                    (int(np.argmax(scores)), max(scores), x, y, max(w, h), min(w, h), turned % np.pi)
                )
        return found
