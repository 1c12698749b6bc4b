"""Augmentation of whole batches in which every sample has its own, reproducible draw.

Three steps, each a pure function::

    plan  = augment.plan(index, epoch, shape)     # who gets what: small tensors, no pixels
    stages = fold                                 # neighbours of one kind become one operation (inside apply)
    batch = augment.apply(batch, plan)            # one draw for pictures, masks, boxes, keypoints and labels

and the usual short form of all three::

    batch = augment(images, index=index, epoch=epoch, labels=labels)      # an ImageBatch

What a DataModule needs to know:

- ``images`` is ``uint8 (B, C, H, W)`` in [0, 255] or ``float (B, C, H, W)`` in [0, 1], and is never changed. The result
  is a new ``float32`` batch: in [0, 1], or normalised where the augment has ``mean`` and ``std``.
- ``index`` is the samples' position in their dataset, ``int64 (B,)``; ``epoch`` a number or ``int64 (B,)``. Together
  with the seed and the operation's place in the list they are the only source of randomness: no global random stream
  is read or moved, and the batch's size, order, worker, rank or device make no difference. MixUp and CutMix are the
  one exception that there must be: a sample's partner comes from its own batch, so it also depends on which samples
  share that batch (and not on their order).
- ``labels``: ``int64 (B,)`` comes back unchanged, or as ``float32 (B, num_classes)`` if the list holds MixUp or CutMix;
  float labels are mixed as they are. ``augment.mixes`` tells which.
- ``augment.with_defaults(mean=..., std=..., num_classes=...)`` returns a copy that has what the data module knows and
  the user did not say.
- ``augment.place(device)`` answers ``"worker"`` or ``"device"`` (``where="auto"``: worker on the CPU).
- The index and the epoch travel with each sample, so that persistent and prefetching workers see the right epoch:
  :class:`KeyedSampler` wraps any sampler of integers and yields :class:`Key` ``(sample, epoch)`` (Lightning calls its
  ``set_epoch``); :class:`KeyedDataset` turns ``dataset[key]`` into ``(sample, index, epoch)``; and
  :class:`AugmentCollate` collates and augments inside the worker.
- Only training batches are augmented: ``on_after_batch_transfer`` must look at ``self.trainer.training``, the one flag
  that is false in the sanity check and in validation.
- Texts go one by one: :class:`TextAugment` ``(text, index=..., epoch=...)`` in the dataset or the worker;
  :class:`WordDropout` ``(ids, index=..., epoch=...)`` on a batch of token ids.
- :func:`standard_ops` is what ``augment="standard"`` stands for.
"""

from lightning_tricks.data.augment._augment import BatchAugment as BatchAugment
from lightning_tricks.data.augment._batch import ImageBatch as ImageBatch
from lightning_tricks.data.augment._batch import Plan as Plan
from lightning_tricks.data.augment._keyed_loading import AugmentCollate as AugmentCollate
from lightning_tricks.data.augment._keyed_loading import Key as Key
from lightning_tricks.data.augment._keyed_loading import KeyedDataset as KeyedDataset
from lightning_tricks.data.augment._keyed_loading import KeyedSampler as KeyedSampler
from lightning_tricks.data.augment.ops._colour import Brightness as Brightness
from lightning_tricks.data.augment.ops._colour import Contrast as Contrast
from lightning_tricks.data.augment.ops._colour import Grayscale as Grayscale
from lightning_tricks.data.augment.ops._colour import Hue as Hue
from lightning_tricks.data.augment.ops._colour import Saturation as Saturation
from lightning_tricks.data.augment.ops._crops import Crop as Crop
from lightning_tricks.data.augment.ops._crops import RandomResizedCrop as RandomResizedCrop
from lightning_tricks.data.augment.ops._geometry import HorizontalFlip as HorizontalFlip
from lightning_tricks.data.augment.ops._geometry import Perspective as Perspective
from lightning_tricks.data.augment.ops._geometry import Rotate as Rotate
from lightning_tricks.data.augment.ops._geometry import Scale as Scale
from lightning_tricks.data.augment.ops._geometry import Shear as Shear
from lightning_tricks.data.augment.ops._geometry import Translate as Translate
from lightning_tricks.data.augment.ops._geometry import VerticalFlip as VerticalFlip
from lightning_tricks.data.augment.ops._levels import AutoContrast as AutoContrast
from lightning_tricks.data.augment.ops._levels import Equalize as Equalize
from lightning_tricks.data.augment.ops._levels import Posterize as Posterize
from lightning_tricks.data.augment.ops._levels import Solarize as Solarize
from lightning_tricks.data.augment.ops._mix import CutMix as CutMix
from lightning_tricks.data.augment.ops._mix import MixUp as MixUp
from lightning_tricks.data.augment.ops._noise import GaussianNoise as GaussianNoise
from lightning_tricks.data.augment.ops._op import Op as Op
from lightning_tricks.data.augment.ops._pixels import Erase as Erase
from lightning_tricks.data.augment.ops._pixels import GaussianBlur as GaussianBlur
from lightning_tricks.data.augment.ops._pixels import HueHSV as HueHSV
from lightning_tricks.data.augment.ops._pixels import Sharpness as Sharpness
from lightning_tricks.data.augment.ops._policies import RandAugment as RandAugment
from lightning_tricks.data.augment.ops._policies import TrivialAugment as TrivialAugment
from lightning_tricks.data.augment.ops._presets import standard_ops as standard_ops
from lightning_tricks.data.augment.text._synonyms import Synonyms as Synonyms
from lightning_tricks.data.augment.text._text import RandomDeletion as RandomDeletion
from lightning_tricks.data.augment.text._text import RandomInsertion as RandomInsertion
from lightning_tricks.data.augment.text._text import RandomSwap as RandomSwap
from lightning_tricks.data.augment.text._text import SynonymReplacement as SynonymReplacement
from lightning_tricks.data.augment.text._text import TextAugment as TextAugment
from lightning_tricks.data.augment.text._text import WordDropout as WordDropout
