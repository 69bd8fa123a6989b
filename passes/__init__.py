"""The rewrites, one verb a file. `fxcompress.api` and `fxcompress.frozen` put them in order."""

from fxcompress.passes.canonicalize import Canonicalize as Canonicalize
from fxcompress.passes.convolve_batchnorm import ConvolveBatchNorm as ConvolveBatchNorm
from fxcompress.passes.flatten_products import FlattenProducts as FlattenProducts
from fxcompress.passes.fold_batchnorm import FoldBatchNorm as FoldBatchNorm
from fxcompress.passes.fold_constants import FoldConstants as FoldConstants
from fxcompress.passes.fold_masks import FoldMasks as FoldMasks
from fxcompress.passes.freeze import Freeze as Freeze
from fxcompress.passes.integer_products import IntegerProducts as IntegerProducts
from fxcompress.passes.linearize_products import LinearizeProducts as LinearizeProducts
from fxcompress.passes.lower_to_qdq import LowerToQdq as LowerToQdq
from fxcompress.passes.merge_duplicates import MergeDuplicates as MergeDuplicates
from fxcompress.passes.move_activations import MoveActivations as MoveActivations
from fxcompress.passes.prune_activations import PruneActivations as PruneActivations
from fxcompress.passes.prune_channels import PruneChannels as PruneChannels
from fxcompress.passes.prune_weights import PruneWeights as PruneWeights
from fxcompress.passes.quantize_activations import QuantizeActivations as QuantizeActivations
from fxcompress.passes.quantize_bias import QuantizeBias as QuantizeBias
from fxcompress.passes.quantize_gates import QuantizeGates as QuantizeGates
from fxcompress.passes.quantize_weights import QuantizeWeights as QuantizeWeights
from fxcompress.passes.rearrange_weights import RearrangeWeights as RearrangeWeights
from fxcompress.passes.remove_disabled import RemoveDisabled as RemoveDisabled
from fxcompress.passes.remove_neutral import RemoveNeutral as RemoveNeutral
from fxcompress.passes.share_scales import ShareScales as ShareScales
from fxcompress.passes.shrink_shapes import ShrinkShapes as ShrinkShapes
