//! The values and secrets that the cluster keeps, as far as this node's key opens them.
//!
//! The driver shows what there is before each round of effects, so that an attempt gets what its node knew
//! when it began. What a key does not open is told once, and keeps nothing else from being opened.

use std::{collections::BTreeMap, sync::Arc};

use carbonmesh_protocol::{
    name::Name,
    secret::{Place, PlaceId, SecretEntry},
};
use tracing::warn;

use super::{Guarded, SHORTEST_SECRET, ScopeKey, guard};

/// See the [module](self).
#[derive(Clone, Default)]
pub(super) struct Kept {
    key: Option<Arc<ScopeKey>>,
    all: BTreeMap<PlaceId, Opened>,
}

/// One entry, as it was when it was looked at.
#[derive(Clone)]
struct Opened {
    digest: u64,
    place: Place,
    /// Nothing, if the key does not open it.
    value: Option<Arc<Guarded>>,
}

impl Kept {
    /// What this key opens.
    pub(super) fn with_key(key: ScopeKey) -> Self {
        Self { key: Some(Arc::new(key)), all: BTreeMap::new() }
    }

    /// Takes over what there is now. Only what has changed is opened anew.
    pub(super) fn look<'a>(
        &mut self,
        entries: impl Iterator<Item = (PlaceId, u64, &'a SecretEntry)>,
    ) {
        let Some(key) = &self.key else { return };
        let mut before = std::mem::take(&mut self.all);
        let mut fresh = Vec::new();
        for (id, digest, entry) in entries {
            let known = before.remove(&id).filter(|known| known.digest == digest);
            let opened = known.unwrap_or_else(|| {
                let value = open(key, entry).map(Arc::new);
                fresh.extend(value.clone().filter(|value| !value.forms.is_empty()));
                Opened { digest, place: entry.place.clone(), value }
            });
            self.all.insert(id, opened);
        }
        // What is gone is given up before, so that it counts as such.
        drop(before);
        guard(fresh);
    }

    /// What the attempts of a phase in a pipeline get of it: of entries of one name, what says more.
    pub(super) fn of<'a>(
        &'a self,
        pipeline: &Name,
        phase: &Name,
    ) -> BTreeMap<&'a str, &'a Arc<Guarded>> {
        let fits = self.all.values().filter(|it| it.place.covers(pipeline, phase));
        let mut fits: Vec<(&Place, &Arc<Guarded>)> =
            fits.filter_map(|it| Some((&it.place, it.value.as_ref()?))).collect();
        fits.sort_by(|(a, _), (b, _)| a.weight().cmp(&b.weight()));
        fits.into_iter().map(|(place, value)| (place.name.as_str(), value)).collect()
    }
}

/// What stands in an entry. What does not open, or cannot be given to a phase, is told.
fn open(key: &ScopeKey, entry: &SecretEntry) -> Option<Guarded> {
    let (place, sealed) = (&entry.place, entry.sealed.as_ref()?);
    let reason = match key.open(place, sealed) {
        None if sealed.key != key.id() => {
            "it was sealed with another key than --scope-key-file has"
        }
        None => "it was changed, or sealed for another place",
        Some(value) if value.contains('\0') => "it has a zero",
        Some(value) if sealed.hidden && value.len() < SHORTEST_SECRET => {
            "it is too short to be hidden"
        }
        Some(value) => return Some(Guarded::new(&value, sealed.hidden)),
    };
    let Place { namespace, pipeline, phase, name } = place;
    warn!(
        %name, %namespace, %pipeline, %phase, key = %sealed.key, own = %key.id(), reason,
        "a value or secret of the cluster cannot be opened: phases here go without it"
    );
    None
}
