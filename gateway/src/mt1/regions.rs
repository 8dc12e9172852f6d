//! Shared-memory regions: large tensors are written to them instead of being transmitted.
//!
//! A region is used by one request at a time. It is used again unless that request ended in a way that lets a worker
//! still write to it.

use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::{Code, DaemonError};
use super::header::Area;
use super::pending::Outcome;

/// What a region begins with, before its nonce.
const MAGIC: &[u8] = b"MT1:region\n";

/// Where the first area may begin.
pub const FIRST_AREA: usize = 4096;

/// Areas begin at multiples of this, which TensorFlow's kernels like best.
pub const ALIGNMENT: usize = 64;

const SMALLEST_BYTES: usize = 1 << 20;

/// Of all event loops together; a daemon has at most 256 regions open.
pub const MAX_REGIONS: usize = 64;
const MAX_BYTES: usize = 512 << 20;

/// Free regions are given back after this time.
const KEPT: Duration = Duration::from_secs(10);

/// After the daemon has refused a region without stating a time, and at most.
const REFUSED: Duration = Duration::from_secs(3600);

/// Mapped memory that the daemon can open.
struct Region {
    address: NonNull<u8>,
    bytes: usize,
    name: String,
    _fd: OwnedFd,
}

// SAFETY: the memory is valid in all threads, and each range of it is accessed by one owner at a time.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: the name ends with a zero byte.
        let fd = unsafe { libc::memfd_create(c"multitower".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: both calls change the new descriptor only.
        let failed = unsafe {
            libc::ftruncate(fd.as_raw_fd(), length) != 0
                || libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new mapping, of a file that cannot become shorter.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        let address = NonNull::new(address.cast::<u8>()).filter(|_| address != libc::MAP_FAILED);
        let Some(address) = address else { return Err(io::Error::last_os_error()) };
        let nonce = nonce()?;
        let name = format!("mt-{}-{}-{nonce}", std::process::id(), fd.as_raw_fd());
        let region = Self { address, bytes, name, _fd: fd };
        region.write(0, MAGIC);
        region.write(MAGIC.len(), nonce.as_bytes());
        Ok(region)
    }

    /// Copies bytes into the region. What does not fit is a defect of the caller, and left out.
    fn write(&self, offset: usize, bytes: &[u8]) {
        if offset.checked_add(bytes.len()).is_some_and(|end| end <= self.bytes) {
            // SAFETY: the range is within the mapping, and its owner lets nobody read it at this time.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.as_ptr().add(offset), bytes.len()) }
        }
    }

    fn read(&self, offset: usize, length: usize) -> &[u8] {
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            return &[];
        }
        // SAFETY: the range is within the mapping. After the reply, nobody writes to it before the region is free.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().add(offset), length) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

fn nonce() -> io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The regions of one event loop.
#[derive(Clone)]
pub struct Regions {
    pool: Arc<Mutex<Pool>>,
}

struct Pool {
    free: Vec<(Region, Instant)>,
    used: Vec<Used>,
    /// All regions, those in use included.
    regions: usize,
    bytes: usize,
    max_regions: usize,
    max_bytes: usize,
    refused_until: Option<Instant>,
    /// The bytes of the outputs that the last request had in shared memory.
    output_bytes: usize,
}

/// A region that a request uses, and where it is in memory.
struct Used {
    addresses: Range<usize>,
    lease: Weak<Leased>,
}

impl Regions {
    /// Regions for one of `threads` event loops.
    pub fn new(threads: usize) -> Self {
        let pool = Pool {
            free: Vec::new(),
            used: Vec::new(),
            regions: 0,
            bytes: 0,
            max_regions: MAX_REGIONS / threads.max(1),
            max_bytes: MAX_BYTES / threads.max(1),
            refused_until: None,
            output_bytes: 0,
        };
        Self { pool: Arc::new(Mutex::new(pool)) }
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a region with this many bytes after `FIRST_AREA`; None if the tensors must be transmitted.
    pub fn take(&self, bytes: usize) -> Option<Lease> {
        let needed = FIRST_AREA.checked_add(bytes)?;
        let mut pool = self.lock();
        if pool.refused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        // Of equally large ones the last used one: its memory is still in the processor's caches. Then fewer regions
        // are in turn, and their headers repeat more often.
        let fitting = pool.free.iter().enumerate().rev().filter(|(_, (region, _))| region.bytes >= needed);
        let region = match fitting.min_by_key(|(_, (region, _))| region.bytes).map(|(index, _)| index) {
            Some(index) => pool.free.remove(index).0,
            None => {
                let size = needed.checked_next_power_of_two()?.max(SMALLEST_BYTES);
                if pool.bytes + size > pool.max_bytes || pool.regions >= pool.max_regions {
                    // Smaller ones that nobody uses make room.
                    pool.drop_free(|_| false);
                }
                if pool.bytes + size > pool.max_bytes || pool.regions >= pool.max_regions {
                    return None;
                }
                let region = Region::new(size).ok()?;
                pool.bytes += size;
                pool.regions += 1;
                region
            }
        };
        let start = region.address.as_ptr() as usize;
        let addresses = start..start + region.bytes;
        let lease = Arc::new(Leased {
            region: Some(region),
            regions: self.clone(),
            filled: AtomicUsize::new(FIRST_AREA),
            reusable: AtomicBool::new(true),
        });
        pool.used.push(Used { addresses, lease: Arc::downgrade(&lease) });
        Some(Lease(lease))
    }

    /// Returns a region for a message of this size, with room for outputs behind it.
    pub fn take_for_message(&self, bytes: usize) -> Option<Lease> {
        let output_bytes = self.lock().output_bytes;
        self.take(bytes.checked_add(output_bytes)?)
    }

    /// The outputs of a request had this many bytes. Those of the next one probably have as many.
    pub fn remember_outputs(&self, bytes: usize) {
        self.lock().output_bytes = bytes;
    }

    /// Returns the region that has these bytes, and their offset in it; None if they are elsewhere.
    pub fn find(&self, bytes: &Bytes) -> Option<(Lease, usize)> {
        let start = bytes.as_ptr() as usize;
        let pool = self.lock();
        let used = pool.used.iter().find(|used| used.addresses.contains(&start))?;
        // The bytes keep the region, so this reference is not the last one.
        let lease = used.lease.upgrade()?;
        Some((Lease(lease), start - used.addresses.start))
    }

    /// Gives back what has been free for a while.
    pub fn trim(&self) {
        let now = Instant::now();
        self.lock().drop_free(|since| now.duration_since(since) < KEPT);
    }

    /// Stops using regions if the daemon has refused one. Returns whether it has.
    pub fn is_refusal(&self, error: &DaemonError) -> bool {
        let field = error.field.as_deref().unwrap_or_default();
        let refused = error.reason == "malformed" && field.ends_with("shared_memory_region");
        if refused {
            self.lock().refused_until = Some(Instant::now() + error.retry_after.unwrap_or(REFUSED).min(REFUSED));
        }
        refused
    }
}

impl Pool {
    fn drop_free(&mut self, keep: impl Fn(Instant) -> bool) {
        let before = self.free.len();
        let mut bytes = 0;
        self.free.retain(|(region, since)| {
            let kept = keep(*since);
            bytes += if kept { 0 } else { region.bytes };
            kept
        });
        self.bytes -= bytes;
        self.regions -= before - self.free.len();
    }
}

/// A region while a request uses it. Clones share it.
#[derive(Clone)]
pub struct Lease(Arc<Leased>);

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

struct Leased {
    region: Option<Region>,
    regions: Regions,
    /// Where the bytes end that have been received into the region.
    filled: AtomicUsize,
    reusable: AtomicBool,
}

impl Lease {
    /// Returns where a tensor is, for the header of a request.
    pub fn area(&self, offset: usize, bytes: usize) -> Area {
        let region = self.0.region.as_ref().map(|region| region.name.clone()).unwrap_or_default();
        Area { region, offset, bytes }
    }

    /// Copies bytes into the region, before the request is sent.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        if let Some(region) = &self.0.region {
            region.write(offset, bytes);
        }
    }

    /// Adds bytes behind those that were added before.
    pub fn append(&self, bytes: &[u8]) {
        let offset = self.0.filled.fetch_add(bytes.len(), Ordering::Relaxed);
        self.write(offset, bytes);
    }

    /// Returns all bytes that were added.
    pub fn appended(&self) -> Bytes {
        self.bytes(FIRST_AREA, self.filled() - FIRST_AREA)
    }

    /// Returns where the bytes end that were added.
    pub fn filled(&self) -> usize {
        self.0.filled.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes of the region.
    pub fn size(&self) -> usize {
        self.0.region.as_ref().map_or(0, |region| region.bytes)
    }

    /// Returns bytes of the region without a copy. They keep it from being used again.
    pub fn bytes(&self, offset: usize, length: usize) -> Bytes {
        Bytes::from_owner(LeasedBytes { lease: self.clone(), offset, length })
    }

    /// Returns the bytes of an output that the daemon says is in this region; None if it is not.
    pub fn output(&self, area: &Area) -> Option<Bytes> {
        let region = self.0.region.as_ref()?;
        let within = area.offset.checked_add(area.bytes).is_some_and(|end| end <= region.bytes);
        (area.region == region.name && within).then(|| self.bytes(area.offset, area.bytes))
    }

    /// The request is about to be sent: until its outcome is known, a worker may write to the region.
    pub fn sent(&self) {
        self.0.reusable.store(false, Ordering::Relaxed);
    }

    /// The request has ended: whether a worker may still write to the region depends on how.
    pub fn ended(&self, outcome: &Outcome) {
        let reusable = match outcome {
            Ok(_) => true,
            Err(error) => {
                let refused = matches!(
                    error.code,
                    Code::InvalidArgument
                        | Code::NotFound
                        | Code::ResourceExhausted
                        | Code::PermissionDenied
                        | Code::Unauthenticated
                );
                refused || matches!(error.reason.as_str(), "model_error" | "output_invalid")
            }
        };
        self.0.reusable.store(reusable, Ordering::Relaxed);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else { return };
        let mut pool = self.regions.lock();
        pool.used.retain(|used| used.lease.strong_count() > 0);
        if self.reusable.load(Ordering::Relaxed) {
            pool.free.push((region, Instant::now()));
        } else {
            pool.bytes -= region.bytes;
            pool.regions -= 1;
        }
    }
}

struct LeasedBytes {
    lease: Lease,
    offset: usize,
    length: usize,
}

impl AsRef<[u8]> for LeasedBytes {
    fn as_ref(&self) -> &[u8] {
        self.lease.0.region.as_ref().map(|region| region.read(self.offset, self.length)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code, reason: &str) -> Outcome {
        Err(DaemonError::new(code, reason, "m"))
    }

    #[test]
    fn a_region_says_what_it_is_and_where() {
        let lease = Regions::new(1).take(1000).unwrap();
        lease.write(FIRST_AREA, b"abc");
        let area = lease.area(FIRST_AREA, 3);
        assert_eq!(lease.output(&area).as_deref(), Some(&b"abc"[..]));
        let parts: Vec<&str> = area.region.split('-').collect();
        let path = format!("/proc/{}/fd/{}", parts[1], parts[2]);
        let contents = std::fs::read(path).unwrap();
        assert_eq!(contents[..43], [b"MT1:region\n", parts[3].as_bytes()].concat());
        assert_eq!(contents[FIRST_AREA..FIRST_AREA + 3], *b"abc");
        assert_eq!(lease.output(&Area { bytes: usize::MAX, ..area.clone() }), None);
        assert_eq!(lease.output(&Area { region: "mt-1-2-3".into(), ..area }), None);
    }

    #[test]
    fn bytes_that_were_received_into_a_region_are_found_there() {
        let regions = Regions::new(1);
        regions.remember_outputs(2 << 20);
        let lease = regions.take_for_message(6).unwrap();
        assert!(lease.size() > 2 << 20, "there is room for the outputs");
        lease.append(b"abc");
        lease.append(b"def");
        let (filled, message) = (lease.filled(), lease.appended());
        assert_eq!((&message[..], filled), (&b"abcdef"[..], FIRST_AREA + 6));
        drop(lease);
        let part = message.slice(2..4);
        drop(message);
        let (lease, offset) = regions.find(&part).unwrap();
        assert_eq!((offset, lease.filled()), (FIRST_AREA + 2, filled));
        assert!(regions.find(&Bytes::from_static(b"cd")).is_none());
        drop((lease, part));
        assert!(regions.lock().used.is_empty());
        assert_eq!(regions.take(1).unwrap().filled(), FIRST_AREA, "the next message begins at the beginning");
    }

    #[test]
    fn a_region_is_used_again_only_if_no_worker_can_write_to_it() {
        let table = [
            (Ok(Default::default()), true),
            (error(Code::InvalidArgument, "shape_invalid"), true),
            (error(Code::Internal, "model_error"), true),
            (error(Code::DeadlineExceeded, "deadline"), false),
            (error(Code::Unavailable, "worker_died"), false),
            (error(Code::Unavailable, "connection_lost"), false),
        ];
        for (outcome, reusable) in table {
            let regions = Regions::new(1);
            let lease = regions.take(10).unwrap();
            let name = lease.area(0, 0).region;
            lease.sent();
            lease.ended(&outcome);
            drop(lease);
            assert_eq!(regions.lock().regions, usize::from(reusable), "{outcome:?}");
            assert_eq!(regions.take(10).unwrap().area(0, 0).region == name, reusable, "{outcome:?}");
        }
        // A request whose future was dropped.
        let regions = Regions::new(1);
        regions.take(10).unwrap().sent();
        let pool = regions.lock();
        assert_eq!((pool.regions, pool.bytes), (0, 0));
    }

    #[test]
    fn the_region_that_was_used_last_is_used_first() {
        let regions = Regions::new(1);
        let mut leases: Vec<Lease> = (0..4).map(|_| regions.take(10).unwrap()).collect();
        let names: Vec<String> = leases.iter().map(|lease| lease.area(0, 0).region).collect();
        for index in [2, 0, 1, 0] {
            drop(leases.remove(index)); // regions 2, 0, 3, 1
        }
        let again: Vec<Lease> = (0..4).map(|_| regions.take(10).unwrap()).collect();
        let again: Vec<String> = again.iter().map(|lease| lease.area(0, 0).region).collect();
        assert_eq!(again, [1, 3, 0, 2].map(|index: usize| names[index].clone()));
    }

    #[test]
    fn the_number_and_the_bytes_of_regions_are_limited() {
        let regions = Regions::new(MAX_REGIONS);
        let lease = regions.take(SMALLEST_BYTES).unwrap();
        assert!(regions.take(10).is_none());
        let kept = lease.bytes(FIRST_AREA, 1);
        drop(lease);
        assert!(regions.take(10).is_none(), "its bytes are still in use");
        drop(kept);
        // The free one is large enough, and otherwise makes room.
        assert!(regions.take(10).is_some());
        assert!(regions.take(4 << 20).is_some());
        assert!(regions.take(MAX_BYTES / MAX_REGIONS).is_none());
        regions.trim();
    }

    #[test]
    fn a_refused_region_is_the_last_one_for_a_while() {
        let regions = Regions::new(1);
        let mut error = DaemonError::invalid("m");
        assert!(!regions.is_refusal(&error));
        error.field = Some("inputs[0].parameters.shared_memory_region".into());
        error.retry_after = Some(Duration::ZERO);
        assert!(regions.is_refusal(&error));
        assert!(regions.take(10).is_some());
        for wait in [None, Some(Duration::MAX)] {
            error.retry_after = wait;
            assert!(regions.is_refusal(&error));
            assert!(regions.take(10).is_none());
        }
    }
}
