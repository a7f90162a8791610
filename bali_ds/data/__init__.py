"""Order, reading, sampling and collation of training samples."""

from bali_ds.data.webdataset_samples import read_shards, webdataset_pipeline

__all__ = ["read_shards", "webdataset_pipeline"]
