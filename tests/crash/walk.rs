//! The way that an undisturbed run takes through its points, and through which a run
//! goes back that is undone.
//!
//! The points are not listed anywhere: an undisturbed run traces them. So a step that
//! is added is in the matrix from then on.

use std::collections::BTreeMap;

/// A point, and which time it is reached, from 0, by one process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub point: String,
    pub nth: usize,
}

/// A point of the way.
#[derive(Debug, Clone)]
pub struct Stop {
    pub place: Place,
    /// The step that it is reached in, by its place in the plan.
    pub step: Option<usize>,
}

/// A step of the plan.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: String,
    pub before: Place,
    /// Where it has done its work; `None` if there was nothing to do.
    pub after: Option<Place>,
}

/// A point of undoing.
#[derive(Debug, Clone)]
pub struct Undo {
    /// The step that is undone.
    pub step: usize,
    pub place: Place,
}

/// The way of an undisturbed run.
#[derive(Debug, Clone)]
pub struct Walk {
    operation: &'static str,
    pub stops: Vec<Stop>,
    pub steps: Vec<Step>,
}

impl Walk {
    /// The way that a trace shows.
    pub fn new(operation: &'static str, trace: &[String]) -> Self {
        let own = format!("{operation}.");
        let mut walk = Self {
            operation,
            stops: Vec::new(),
            steps: Vec::new(),
        };
        let mut reached = Counter::default();
        for point in trace {
            let inside = point.strip_prefix(&own);
            if inside.is_none() && !point.starts_with("pool.") {
                continue;
            }
            let place = reached.next(point);
            let (step, at) = inside.and_then(|it| it.split_once('.')).unwrap_or_default();
            match (step, at) {
                ("begin" | "end", _) => {}
                (name, "before") => walk.steps.push(Step {
                    name: name.to_owned(),
                    before: place.clone(),
                    after: None,
                }),
                (_, "after") => {
                    let last = walk.steps.last_mut().expect("a step has begun");
                    last.after = Some(place.clone());
                }
                _ => {}
            }
            let step = match step {
                "begin" | "end" => None,
                _ => walk.steps.len().checked_sub(1),
            };
            walk.stops.push(Stop { place, step });
        }
        walk
    }

    /// The steps up to one, by name, in order.
    pub fn names(&self, until: usize) -> Vec<String> {
        let steps = self.steps[..=until].iter();
        steps.map(|step| step.name.clone()).collect()
    }

    /// The points of an undoing that begins with this step.
    pub fn undoing(&self, from: usize) -> Vec<Undo> {
        let mut reached = Counter::default();
        let mut undoing = Vec::new();
        for step in (0..=from).rev() {
            for at in ["undo", "undone"] {
                let point = format!("{}.{}.{at}", self.operation, self.steps[step].name);
                let place = reached.next(&point);
                undoing.push(Undo { step, place });
            }
        }
        undoing
    }

    /// The points of an undoing that a former process has begun: it goes through the
    /// whole plan, because how far that had come is measured and not remembered.
    pub fn undoing_again(&self) -> Vec<Undo> {
        self.undoing(self.steps.len() - 1)
    }

    /// Where on the way a process is that has left this trace: the index of its last
    /// point, if that is on the way.
    pub fn last_of(&self, trace: &[String]) -> Option<usize> {
        let own = format!("{}.", self.operation);
        let mut steps = 0usize;
        let mut reached = Counter::default();
        let mut last = None;
        for point in trace {
            let inside = point.strip_prefix(&own);
            if inside.is_none() && !point.starts_with("pool.") {
                continue;
            }
            let (step, at) = inside.and_then(|it| it.split_once('.')).unwrap_or_default();
            let around = matches!(step, "begin" | "end");
            if !around && at == "before" {
                steps += 1;
                reached = Counter::default();
            }
            let step = if around { None } else { steps.checked_sub(1) };
            last = Some((step, reached.next(point)));
        }
        let (step, place) = last?;
        let mut within = Counter::default();
        for (index, stop) in self.stops.iter().enumerate() {
            if stop.step != step {
                continue;
            }
            if within.next(&stop.place.point) == place {
                return Some(index);
            }
        }
        None
    }
}

/// Counts how often each point is reached.
#[derive(Debug, Default)]
struct Counter(BTreeMap<String, usize>);

impl Counter {
    fn next(&mut self, point: &str) -> Place {
        let count = self.0.entry(point.to_owned()).or_default();
        let nth = *count;
        *count += 1;
        Place {
            point: point.to_owned(),
            nth,
        }
    }
}

impl Place {
    /// Arms it for one time.
    pub fn arm(&self, how: &str) -> String {
        armed(&self.point, self.nth, how)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.point, self.nth)
    }
}

/// Arms a point for one time, after having let it pass so often.
pub fn armed(point: &str, passes: usize, how: &str) -> String {
    if passes == 0 {
        format!("{point}=1*return({how})")
    } else {
        format!("{point}={passes}*off->1*return({how})")
    }
}
