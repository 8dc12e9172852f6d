//! POSIX access control lists of files: what others may do where the mode alone does not tell. As in the daemon's
//! `supervisor/config/access_lists.py`.
//!
//! With a list, the group's bits of a mode are the list's mask: the most that its named users and groups may do. So
//! systemd shows mode 0440 for a credential (`LoadCredential`) that nobody but the unit's user and root may read.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

const ATTRIBUTE: &std::ffi::CStr = c"system.posix_acl_access";
const VERSION: [u8; 4] = 2u32.to_le_bytes();

// Tags of entries.
const USER: u16 = 0x02;
const GROUP_OF_FILE: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;

/// Bytes of a list; a longer one is not looked at, and the mode counts.
const MAX_BYTES: usize = 4096;

/// Returns the permissions of a file for its group and all others, 0 to 0o077. With a list, the group's are what the
/// group and all named users and groups may do together, but for root and `user`.
pub fn mode_for_others(file: &File, metadata: &Metadata, user: u32) -> u32 {
    let mode = metadata.mode() & 0o077;
    // Without bits for the group the mask is empty.
    let Some(granted) = (mode & 0o070 != 0).then(|| read(file)).flatten().and_then(|list| granted(&list, user)) else {
        return mode;
    };
    mode & 0o007 | granted << 3
}

/// Returns a file's list, if it has one.
fn read(file: &File) -> Option<Vec<u8>> {
    let mut list = vec![0; MAX_BYTES];
    // SAFETY: the name ends with a zero byte, and at most as many bytes are written as there are.
    let length = unsafe { libc::fgetxattr(file.as_raw_fd(), ATTRIBUTE.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(length).ok()?);
    Some(list)
}

/// Returns what a list grants to others than root and `user`, 0 to 7; None if it cannot be read, or has no mask: then it
/// names nobody, and the group's bits of the mode are the group's own.
fn granted(list: &[u8], user: u32) -> Option<u32> {
    let (entries, rest) = list.strip_prefix(&VERSION)?.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let (mut allowed, mut granted) = (None, 0);
    for &[tag_low, tag_high, permissions_low, _, number @ ..] in entries {
        let (tag, permissions) = (u16::from_le_bytes([tag_low, tag_high]), u32::from(permissions_low) & 7);
        match tag {
            MASK => allowed = Some(permissions),
            USER if [0, user].contains(&u32::from_le_bytes(number)) => {}
            USER | GROUP_OF_FILE | GROUP => granted |= permissions,
            _ => {}
        }
    }
    Some(allowed? & granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: u16 = 0x01;
    const OTHERS: u16 = 0x20;
    const ME: u32 = 1234;
    const NOBODY_NAMED: u32 = u32::MAX;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |&(tag, permissions, number): &(u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &number.to_le_bytes()].concat()
        };
        [VERSION.to_vec(), entries.iter().flat_map(entry).collect()].concat()
    }

    #[test]
    fn a_list_grants_what_its_mask_leaves_to_others_than_its_user() {
        for (named, mask, expected) in [
            (&[(USER, 4, ME)][..], 4, 0), // as systemd writes it
            (&[(USER, 4, ME), (USER, 4, 0)], 4, 0),
            (&[(USER, 4, ME), (USER, 6, 99)], 4, 4),
            (&[(USER, 4, ME), (GROUP, 6, ME)], 7, 6),
            (&[(USER, 4, ME), (GROUP_OF_FILE, 4, NOBODY_NAMED)], 7, 4),
            (&[(USER, 7, 99)], 0, 0),
        ] {
            let entries =
                [&[(OWNER, 4, NOBODY_NAMED)], named, &[(MASK, mask, NOBODY_NAMED), (OTHERS, 7, NOBODY_NAMED)]];
            assert_eq!(granted(&list(&entries.concat()), ME), Some(expected), "{named:?}");
        }
    }

    #[test]
    fn what_is_no_list_is_not_read_as_one() {
        let whole = list(&[(USER, 4, ME), (MASK, 4, NOBODY_NAMED)]);
        for wrong in [&whole[1..], &whole[..whole.len() - 1], &[], &[3, 0, 0, 0]] {
            assert_eq!(granted(wrong, ME), None);
        }
    }

    #[test]
    fn a_list_without_a_mask_takes_nothing_from_the_mode() {
        let own = [(OWNER, 6, NOBODY_NAMED), (GROUP_OF_FILE, 4, NOBODY_NAMED), (OTHERS, 0, NOBODY_NAMED)];
        for entries in [&own[..], &[]] {
            assert_eq!(granted(&list(entries), ME), None);
        }
    }

    #[test]
    fn a_file_without_a_list_has_its_mode() {
        let path = std::env::temp_dir().join(format!("multitower-access-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o600, 0o477] {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(mode_for_others(&file, &file.metadata().unwrap(), ME), mode & 0o077);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_list_of_a_file_counts_and_not_its_mode() {
        let path = std::env::temp_dir().join(format!("multitower-access-list-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let [owner, group, others] =
            [(OWNER, 4), (GROUP_OF_FILE, 0), (OTHERS, 0)].map(|(tag, bits)| (tag, bits, NOBODY_NAMED));
        let written = list(&[owner, (USER, 4, ME), group, (MASK, 4, NOBODY_NAMED), others]);
        let set = |value: &[u8]| {
            // SAFETY: the name ends with a zero byte, and `value` has as many bytes as are read.
            unsafe { libc::fsetxattr(file.as_raw_fd(), ATTRIBUTE.as_ptr(), value.as_ptr().cast(), value.len(), 0) }
        };
        // Some file systems have no lists.
        if set(&written) == 0 {
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.mode() & 0o777, 0o440);
            assert_eq!(mode_for_others(&file, &metadata, ME), 0);
            assert_eq!(mode_for_others(&file, &metadata, ME + 1), 0o040);
        }
        std::fs::remove_file(path).unwrap();
    }
}
