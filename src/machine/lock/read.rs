//! Reads of locks over a view.

use super::line::{self, Line, Waiter};
use crate::{
    machine::{
        Space, View,
        keyspace::{self, Current},
        page::{page_size, page_start},
        store::StoreError,
        tx,
    },
    pb::{
        command::v1::Refusal,
        kv::v1::KeyValue,
        lock::v1::{self, DescribeResponse, ListRequest, ListResponse, Lock},
    },
    types::{KeyRange, LogTime, SessionId},
};

/// How many waiters a description lists.
const WAITERS_LISTED_MAX: usize = 1_000;

impl View {
    /// One lock with its line; a free lock has no holder.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn lock(&self, name: &str) -> Result<DescribeResponse, StoreError> {
        let row = keyspace::row(self.reader().as_ref(), Space::Locks, name.as_bytes())?;
        let mut lock = match row {
            Some(row) => self.read_lock(row)?,
            None => Lock { name: name.to_owned(), ..Lock::default() },
        };
        let range = line::waiters_key(name).prefix();
        let waiters = self.reader().scan(&range.start, range.end.as_deref());
        for row in waiters.take(WAITERS_LISTED_MAX) {
            let waiter: Waiter = tx::decode(row?.1)?;
            lock.waiters.push(v1::Waiter {
                owner: waiter.owner,
                session_id: waiter.session_id,
                enqueue_time: Some(LogTime::from_millis(waiter.enqueue_time_ms).to_timestamp()),
            });
        }
        Ok(DescribeResponse { lock: Some(lock), revision: self.head()?.revision.value() })
    }

    /// `lock.v1.LockService/List`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn locks(
        &self,
        request: &ListRequest,
    ) -> Result<Result<ListResponse, Refusal>, StoreError> {
        let key = |name: &str| keyspace::current_key(Space::Locks, name.as_bytes());
        let range = KeyRange::prefix(&key(&request.prefix));
        let start = page_start(range.start, &key(&request.page_token));
        let size = page_size(request.page_size);
        let mut response =
            ListResponse { revision: self.head()?.revision.value(), ..ListResponse::default() };
        for row in self.reader().scan(&start, range.end.as_deref()) {
            if response.locks.len() == size {
                let last = response.locks.last().map(|lock| lock.name.clone());
                response.next_page_token = last.unwrap_or_default();
                break;
            }
            let place = Current::decode(&row?.1)?.place;
            let lock = self.read_lock(keyspace::load(self.reader().as_ref(), place)?)?;
            response.locks.push(lock);
        }
        Ok(Ok(response))
    }

    /// The holder's session of a lock, where it is held with this token.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn lock_session(
        &self,
        name: &str,
        fencing_token: u64,
    ) -> Result<Option<SessionId>, StoreError> {
        let hold: Option<line::Hold> = tx::load(self.reader().as_ref(), &line::hold_key(name))?;
        let hold = hold.filter(|hold| hold.fencing_token == fencing_token);
        Ok(hold.map(|hold| hold.session()))
    }

    /// A held lock as its row has it, with the length of its line.
    fn read_lock(&self, row: KeyValue) -> Result<Lock, StoreError> {
        let mut lock: Lock = tx::decode(row.value)?;
        let line: Option<Line> = tx::load(self.reader().as_ref(), &line::line_key(&lock.name))?;
        lock.waiter_count = line.map_or(0, |line| line.count);
        Ok(lock)
    }
}
