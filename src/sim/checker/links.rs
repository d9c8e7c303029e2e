//! The lists that a search walks: operations are taken out and put back in the reverse order.
//!
//! One holds calls and returns in their order, another which return comes first of those that are
//! left. Taking out and putting back cost the same however long a history is.

use crate::sim::checker::model::Entry;

/// A list from which operations are taken out and put back, in the reverse order.
pub(super) struct Links {
    prev: Vec<u32>,
    next: Vec<u32>,
    /// What each node stands for; the head and the end stand for nothing.
    nodes: Vec<Node>,
    /// Each entry's call.
    call_of: Vec<u32>,
    /// Each entry's return.
    return_of: Vec<u32>,
    /// The returns that are left, in their order.
    returns: Returns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Call(u32),
    Return(u32),
    Border,
}

const NONE: u32 = u32::MAX;

impl Links {
    pub(super) fn required<O>(entries: &[Entry<O>], returned: &[usize]) -> Self {
        let mut events = Vec::new();
        for ((at, entry), returned) in (0_u32..).zip(entries).zip(returned) {
            if *returned != usize::MAX {
                events.push((entry.called, Node::Call(at)));
                events.push((*returned, Node::Return(at)));
            }
        }
        Self::new(entries.len(), events)
    }

    pub(super) fn optional<O>(entries: &[Entry<O>], optional: impl Iterator<Item = usize>) -> Self {
        let call = |at: usize| {
            let node = Node::Call(u32::try_from(at).expect("a history is smaller"));
            (entries[at].called, node)
        };
        Self::new(entries.len(), optional.map(call).collect())
    }

    fn new(entries: usize, mut events: Vec<(usize, Node)>) -> Self {
        events.sort_by_key(|(line, _)| *line);
        let mut nodes = vec![Node::Border];
        nodes.extend(events.iter().map(|(_, node)| *node));
        nodes.push(Node::Border);
        let (mut call_of, mut return_of) = (vec![NONE; entries], vec![NONE; entries]);
        let mut order = Vec::new();
        for (at, node) in (0_u32..).zip(&nodes) {
            match node {
                Node::Call(entry) => call_of[*entry as usize] = at,
                Node::Return(entry) => {
                    return_of[*entry as usize] = at;
                    order.push(*entry);
                }
                Node::Border => {}
            }
        }
        let len = u32::try_from(nodes.len()).expect("a history is smaller");
        Self {
            prev: (0..len).map(|at| at.wrapping_sub(1)).collect(),
            next: (1..=len).collect(),
            nodes,
            call_of,
            return_of,
            returns: Returns::new(entries, &order),
        }
    }

    pub(super) fn first(&self) -> u32 {
        self.next[0]
    }

    pub(super) fn next(&self, node: u32) -> u32 {
        self.next[node as usize]
    }

    pub(super) fn is_end(&self, node: u32) -> bool {
        self.nodes[node as usize] == Node::Border
    }

    pub(super) fn is_call(&self, node: u32) -> bool {
        matches!(self.nodes[node as usize], Node::Call(_))
    }

    pub(super) fn entry(&self, node: u32) -> usize {
        match self.nodes[node as usize] {
            Node::Call(entry) | Node::Return(entry) => entry as usize,
            Node::Border => unreachable!("the walk ends before the border"),
        }
    }

    pub(super) fn first_return(&self) -> Option<usize> {
        self.returns.first()
    }

    pub(super) fn lift(&mut self, entry: usize) {
        for node in [self.call_of[entry], self.return_of[entry]] {
            if node != NONE {
                let (prev, next) = (self.prev[node as usize], self.next[node as usize]);
                self.next[prev as usize] = next;
                self.prev[next as usize] = prev;
            }
        }
        self.returns.take(entry);
    }

    /// Puts the entry that was taken last back, and gives its call.
    pub(super) fn unlift(&mut self, entry: usize) -> u32 {
        for node in [self.return_of[entry], self.call_of[entry]] {
            if node != NONE {
                let (prev, next) = (self.prev[node as usize], self.next[node as usize]);
                self.next[prev as usize] = node;
                self.prev[next as usize] = node;
            }
        }
        self.returns.put_back(entry);
        self.call_of[entry]
    }
}

/// The entries that are left, by the order of their returns.
struct Returns {
    prev: Vec<u32>,
    next: Vec<u32>,
    /// Each entry's place, from 1; 0 is the head.
    place: Vec<u32>,
    entry: Vec<u32>,
}

impl Returns {
    fn new(entries: usize, order: &[u32]) -> Self {
        let mut place = vec![NONE; entries];
        for (at, entry) in (1_u32..).zip(order) {
            place[*entry as usize] = at;
        }
        let len = u32::try_from(order.len() + 2).expect("a history is smaller");
        let entry = [NONE].into_iter().chain(order.iter().copied()).chain([NONE]).collect();
        Self {
            prev: (0..len).map(|at| at.wrapping_sub(1)).collect(),
            next: (1..=len).collect(),
            place,
            entry,
        }
    }

    fn first(&self) -> Option<usize> {
        let entry = self.entry[self.next[0] as usize];
        (entry != NONE).then_some(entry as usize)
    }

    fn take(&mut self, entry: usize) {
        let at = self.place[entry];
        if at != NONE {
            let (prev, next) = (self.prev[at as usize], self.next[at as usize]);
            self.next[prev as usize] = next;
            self.prev[next as usize] = prev;
        }
    }

    fn put_back(&mut self, entry: usize) {
        let at = self.place[entry];
        if at != NONE {
            let (prev, next) = (self.prev[at as usize], self.next[at as usize]);
            self.next[prev as usize] = at;
            self.prev[next as usize] = at;
        }
    }
}
