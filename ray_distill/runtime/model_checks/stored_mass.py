"""Compare the temperatures of training with the mass that a filled store keeps at them."""

from itertools import islice

import numpy as np

from ray_distill.config import Campaign
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import read_labels
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.objective.loss_settings import temperatures_of
from ray_distill.students.objective.validate_losses import MIN_RETAINED_MASS, too_little_mass
from ray_distill.tasks.catalogue import get_task

#: Units that are read, and bytes of one that is small enough.
UNITS, UNIT_BYTES = 2, 16 << 20
#: Standard errors by which the sample's mean must be below the limit.
ERRORS = 3.0


def check_stored_mass(config: Campaign, manifest: StoreManifest) -> None:
    """Refuse a temperature at which stored classes surely have too little mass.

    Training decides by all rows (`check_retained_mass`); here a few units are a sample of them.

    Raises:
        ConfigError: the mean mass is below the limit by more than the sample's error.
    """
    kinds = learn_facet(get_task(config.task).answers).LOSSES
    spec = manifest.distributions
    store = open_store(config.store_url)
    store.log.refresh()
    small = (unit for unit in store.ledger.receipts() if unit.bytes_written <= UNIT_BYTES)
    units = [] if spec.draws else list(islice(small, UNITS))
    if not units:
        return
    tails_PT = np.concatenate([read_labels(store.url, manifest, unit)[1].log_tail for unit in units])
    kept_PT = -np.expm1(tails_PT.astype(np.float64))
    for temperature in temperatures_of(config.student.losses, spec.temperatures, kinds):
        kept_P = kept_PT[:, spec.temperatures.index(temperature)]
        if len(kept_P) and kept_P.mean() + ERRORS * kept_P.std() / np.sqrt(len(kept_P)) < MIN_RETAINED_MASS:
            raise too_little_mass(temperature, float(kept_P.mean()))
