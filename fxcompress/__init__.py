"""Joint quantization and pruning of weights and activations, scheduled during training, as passes on torch.fx."""

from fxcompress.api import compress as compress
from fxcompress.arms import at_once as at_once
from fxcompress.arms import matched_arms as matched_arms
from fxcompress.calibration import calibrate as calibrate
from fxcompress.compare import compare as compare
from fxcompress.compare import held_rate as held_rate
from fxcompress.curves import log_curves as log_curves
from fxcompress.export import export_onnx as export_onnx
from fxcompress.frozen import freeze as freeze
from fxcompress.mask_sets import keep_masks as keep_masks
from fxcompress.mask_sets import kept_masks as kept_masks
from fxcompress.mask_sets import use_masks as use_masks
from fxcompress.module import CompressedModule as CompressedModule
from fxcompress.paper import paper_arms as paper_arms
from fxcompress.paper import paper_choices as paper_choices
from fxcompress.report import report as report
from fxcompress.report_html import write_report as write_report
from fxcompress.rules import Prune as Prune
from fxcompress.rules import Quantize as Quantize
from fxcompress.search import search as search
from fxcompress.shrinking import shrink as shrink
from fxcompress.space import Space as Space
from fxcompress.spec import Spec as Spec
from fxcompress.storage import load as load
from fxcompress.storage import save as save
from fxcompress.verify import verify as verify
