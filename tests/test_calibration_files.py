"""Files of calibration data that are missing, damaged or hold something else."""

import pathlib
import zipfile

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibration_data import Calibration
from qcompile.errors import CalibrationError

IDS = np.arange(12, dtype=np.int64).reshape(3, 1, 4)  # three samples [1, 4]
ONE = [ir.val("ids", ir.DataType.INT64, ["batch", "sequence"])]


class TestFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(CalibrationError, match="no such file"):
            list(Calibration(tmp_path / "nowhere.npz").read(ONE))

    def test_not_an_archive(self, tmp_path):
        path = tmp_path / "text.npz"
        path.write_text("not an archive")
        with pytest.raises(CalibrationError, match=r"no \.npz file"):
            list(Calibration(path).read(ONE))

    def test_python_objects_are_never_unpickled(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return pathlib.Path.touch, (tmp_path / "sprung",)

        np.savez(tmp_path / "trap.npz", ids=np.array([Trap()], object))
        with pytest.raises(CalibrationError, match="Python objects"):
            list(Calibration(tmp_path / "trap.npz").read(ONE))
        assert not (tmp_path / "sprung").exists()

    def test_column_major(self, tmp_path):
        np.savez(tmp_path / "columns.npz", ids=np.asfortranarray(IDS[:, 0]))
        with pytest.raises(CalibrationError, match="column-major"):
            list(Calibration(tmp_path / "columns.npz").read(ONE))

    def test_other_members(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(CalibrationError, match=r"readme\.txt"):
            list(Calibration(tmp_path / "other.npz").read(ONE))

    def test_cut_short(self, tmp_path):
        path = tmp_path / "short.npz"
        np.savez(path, ids=IDS[:, 0])
        content = path.read_bytes()
        path.write_bytes(content.replace(IDS.tobytes(), IDS.tobytes()[:-1] + b"\xff"))
        with pytest.raises(CalibrationError, match="damaged"):
            list(Calibration(path).read(ONE))
