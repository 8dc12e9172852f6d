//! A bounded map for values that are cheap to make again.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// A map that is emptied when it is full: what is used often is back at once.
pub struct Cache<K, V> {
    entries: Mutex<HashMap<K, V>>,
    limit: usize,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    pub fn new(limit: usize) -> Self {
        Self { entries: Mutex::new(HashMap::new()), limit }
    }

    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn insert(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.limit && !entries.contains_key(&key) {
            entries.clear();
        }
        entries.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_starts_again() {
        let cache = Cache::new(2);
        for key in ["a", "b", "b"] {
            cache.insert(key, 1);
        }
        assert_eq!((cache.get("a"), cache.get("b")), (Some(1), Some(1)));
        cache.insert("c", 1);
        assert_eq!((cache.get("a"), cache.get("c")), (None, Some(1)));
    }
}
