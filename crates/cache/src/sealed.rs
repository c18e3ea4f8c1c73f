//! Bytes that leave this process, sealed so that they are believed only if they come back as they were.
//!
//! Otherwise, everyone who can write to a shared store or to a file could give any answer to any question. So
//! each value ends with a keyed hash of all of it, and of the place that it is for: an answer that was moved to
//! another question, cut, or made by another program does not open. Keys are derived from one secret, one for each
//! purpose. Optionally the value is encrypted as well; each has a key of its own, from a random salt, so that no
//! number of values wears a key out.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// The form of the values; a change of it makes all older ones worthless, which is right for a cache.
const FORM: [u8; 4] = *b"FBC1";
/// Values that only end with a keyed hash.
const HASHED: u8 = 0;
/// Values that are encrypted.
const ENCRYPTED: u8 = 1;
const HEAD: usize = FORM.len() + 1;
const HASH: usize = 32;
const SALT: usize = 16;
const TAG: usize = 16;

/// Bytes by which a sealed value is longer than the value, at most.
pub const OVERHEAD: usize = HEAD + SALT + HASH;
/// Bytes that a secret has at least.
pub const MIN_SECRET: usize = 32;

/// Keys that are derived from one secret.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// From the bytes of a key file, at least [`MIN_SECRET`].
    pub fn new(bytes: &[u8]) -> Self {
        Self(blake3::derive_key("forebay response cache, secret of a key file", bytes))
    }

    /// The key for a purpose.
    pub fn key(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(&format!("forebay response cache, {purpose}"), &self.0)
    }
}

/// Seals values, and opens them.
pub struct Seal {
    hash_key: [u8; 32],
    encryption_key: [u8; 32],
    encrypts: bool,
    random: SystemRandom,
}

impl Seal {
    /// For values of this purpose: others' do not open. With `encrypts`, only encrypted values open.
    pub fn new(secret: &Secret, purpose: &str, encrypts: bool) -> Self {
        Self {
            hash_key: secret.key(&format!("{purpose}, hashes")),
            encryption_key: secret.key(&format!("{purpose}, encryption")),
            encrypts,
            random: SystemRandom::new(),
        }
    }

    /// The value that `write` appends, sealed for a place. `None`: the system has no random numbers.
    pub fn seal(&self, place: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<u8>> {
        let mut value = FORM.to_vec();
        if !self.encrypts {
            value.push(HASHED);
            write(&mut value);
            let hash = self.hash(place, &value);
            value.extend_from_slice(&hash);
            return Some(value);
        }
        value.push(ENCRYPTED);
        let mut salt = [0; SALT];
        self.random.fill(&mut salt).ok()?;
        value.extend_from_slice(&salt);
        write(&mut value);
        let (head, text) = value.split_at_mut(HEAD + SALT);
        let tag = self
            .cipher(place, head)?
            .seal_in_place_separate_tag(nonce(), Aad::from(head), text)
            .ok()?;
        value.extend_from_slice(tag.as_ref());
        Some(value)
    }

    /// The value that was sealed for this place; `None`: it was not sealed so.
    pub fn open<'a>(&self, place: &[u8], sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        let (form, rest) = sealed.split_first_chunk::<HEAD>()?;
        let kind = form[HEAD - 1];
        if form[..FORM.len()] != FORM || (kind == ENCRYPTED) != self.encrypts {
            return None;
        }
        if kind == HASHED {
            let (_, hash) = rest.split_last_chunk::<HASH>()?;
            let end = sealed.len() - HASH;
            // Compared in constant time.
            let is_same = blake3::Hash::from(self.hash(place, &sealed[..end])) == *hash;
            return is_same.then(|| &sealed[HEAD..end]);
        }
        if rest.len() < SALT + TAG {
            return None;
        }
        let (head, text) = sealed.split_at_mut(HEAD + SALT);
        let cipher = self.cipher(place, head)?;
        cipher.open_in_place(nonce(), Aad::from(head), text).ok().map(|text| &*text)
    }

    fn hash(&self, place: &[u8], value: &[u8]) -> [u8; HASH] {
        let mut hasher = blake3::Hasher::new_keyed(&self.hash_key);
        hasher.update(&(place.len() as u64).to_le_bytes()).update(place).update(value);
        *hasher.finalize().as_bytes()
    }

    /// The cipher of the one value with this head, which has its salt.
    fn cipher(&self, place: &[u8], head: &[u8]) -> Option<LessSafeKey> {
        let mut hasher = blake3::Hasher::new_keyed(&self.encryption_key);
        hasher.update(head).update(place);
        let key = UnboundKey::new(&CHACHA20_POLY1305, hasher.finalize().as_bytes()).ok()?;
        Some(LessSafeKey::new(key))
    }
}

/// A random number; `None`: the system has none.
pub(crate) fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Each key encrypts one value.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn seal(secret: &str, purpose: &str, encrypts: bool) -> Seal {
        Seal::new(&Secret::new(secret.as_bytes()), purpose, encrypts)
    }

    fn sealed(with: &Seal, place: &[u8]) -> Vec<u8> {
        with.seal(place, |value| value.extend_from_slice(b"an answer")).unwrap()
    }

    #[test]
    fn what_was_sealed_for_a_place_opens_there_alone() {
        for encrypts in [false, true] {
            let one = seal("one", "p", encrypts);
            let value = sealed(&one, b"place");
            assert!(value.len() <= b"an answer".len() + OVERHEAD);
            let is_plain = value.windows(9).any(|part| part == b"an answer");
            assert_eq!(is_plain, !encrypts);
            assert_eq!(one.open(b"place", &mut value.clone()), Some(&b"an answer"[..]));
            assert_eq!(one.open(b"other", &mut value.clone()), None);
            for (secret, purpose, kind) in
                [("two", "p", encrypts), ("one", "q", encrypts), ("one", "p", !encrypts)]
            {
                let other = seal(secret, purpose, kind);
                assert_eq!(other.open(b"place", &mut value.clone()), None);
            }
        }
    }

    #[test]
    fn no_changed_or_cut_value_opens() {
        for encrypts in [false, true] {
            let one = seal("one", "p", encrypts);
            let value = sealed(&one, b"place");
            for place in 0..value.len() {
                let mut changed = value.clone();
                changed[place] ^= 1;
                assert_eq!(one.open(b"place", &mut changed), None, "{place}");
                assert_eq!(one.open(b"place", &mut value[..place].to_vec()), None, "{place}");
            }
            let longer = [&value[..], &[0]].concat();
            assert_eq!(one.open(b"place", &mut longer.clone()), None);
        }
    }

    #[test]
    fn equal_values_are_encrypted_differently() {
        let one = seal("one", "p", true);
        assert_ne!(sealed(&one, b"place"), sealed(&one, b"place"));
    }
}
