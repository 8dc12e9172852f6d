//! Wake-ups of a connection by itself: a handler has taken a piece of a body, so the connection can read the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Polls a task's work again at once when the work has woken itself while it was polled.
///
/// Otherwise the task would go behind all others after each piece of a body. The bodies of several clients would then
/// arrive in turns, piece by piece, and the first one would be complete only when nearly all are.
pub struct OwnWakes {
    signal: Arc<Signal>,
    waker: Waker,
}

struct Signal {
    polling: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
}

impl OwnWakes {
    pub fn new() -> Self {
        let signal = Arc::new(Signal {
            polling: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        Self { waker: signal.clone().into(), signal }
    }

    /// Polls the work, and up to `times` times in all while it wakes itself. Then other tasks get their turn.
    pub fn poll<T>(
        &self,
        context: &mut Context<'_>,
        times: usize,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let signal = &*self.signal;
        signal.task.register(context.waker());
        signal.polling.store(true, SeqCst);
        for _ in 0..times {
            signal.woken.store(false, SeqCst);
            if let Poll::Ready(result) = work(&mut Context::from_waker(&self.waker)) {
                return Poll::Ready(result);
            }
            if !signal.woken.load(SeqCst) {
                break;
            }
        }
        // Other threads may wake the work at any time: either they see that it is not polled, or this sees their signal.
        signal.polling.store(false, SeqCst);
        if signal.woken.swap(false, SeqCst) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        if !self.polling.load(SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn work_that_wakes_itself_goes_on_without_its_task_being_woken() {
        let (own, count) = (OwnWakes::new(), Arc::<Count>::default());
        let waker = Waker::from(count.clone());
        let mut pieces = 0;
        let outcome = own.poll(&mut Context::from_waker(&waker), 16, |context| {
            pieces += 1;
            context.waker().wake_by_ref();
            if pieces == 10 { Poll::Ready(()) } else { Poll::Pending }
        });
        assert!(outcome.is_ready());
        assert_eq!(count.0.load(SeqCst), 0);
    }

    #[test]
    fn work_that_never_ends_lets_other_tasks_run_and_is_polled_again() {
        let (own, count) = (OwnWakes::new(), Arc::<Count>::default());
        let waker = Waker::from(count.clone());
        let mut polls = 0;
        let outcome: Poll<()> = own.poll(&mut Context::from_waker(&waker), 16, |context| {
            polls += 1;
            context.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!((polls, count.0.load(SeqCst)), (16, 1));
    }

    #[test]
    fn work_that_waits_is_polled_once_and_woken_by_others() {
        let (own, count) = (OwnWakes::new(), Arc::<Count>::default());
        let waker = Waker::from(count.clone());
        let (mut polls, mut known) = (0, None);
        let outcome: Poll<()> = own.poll(&mut Context::from_waker(&waker), 16, |context| {
            polls += 1;
            known = Some(context.waker().clone());
            Poll::Pending
        });
        assert!(outcome.is_pending());
        assert_eq!((polls, count.0.load(SeqCst)), (1, 0));
        std::thread::spawn(move || known.unwrap().wake()).join().unwrap();
        assert_eq!(count.0.load(SeqCst), 1);
    }
}
