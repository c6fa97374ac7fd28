//! A program that shows a difference is made as short as it can be.

use std::time::{Duration, Instant};

use crate::program::Program;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Takes away what `differs` does not need: steps in ever smaller groups, then single operations.
pub async fn shrink(program: Program, differs: impl AsyncFn(&Program) -> bool) -> Program {
    let end = Instant::now() + LIMIT;
    let mut best = program;
    loop {
        let before = size(&best);
        let mut group = best.steps.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < best.steps.len() && Instant::now() < end {
                let mut shorter = best.clone();
                shorter.steps.drain(at..(at + group).min(best.steps.len()));
                if differs(&shorter).await {
                    best = shorter;
                } else {
                    at += group;
                }
            }
            if group == 1 {
                break;
            }
            group /= 2;
        }
        for step in 0..best.steps.len() {
            let mut at = 0;
            while best.steps[step].operations.len() > 1
                && at < best.steps[step].operations.len()
                && Instant::now() < end
            {
                let mut shorter = best.clone();
                shorter.steps[step].operations.remove(at);
                if differs(&shorter).await {
                    best = shorter;
                } else {
                    at += 1;
                }
            }
        }
        if size(&best) == before || Instant::now() >= end {
            return best;
        }
    }
}

fn size(program: &Program) -> usize {
    program.steps.iter().map(|step| 1 + step.operations.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use crate::program::Operation;

    #[tokio::test]
    async fn only_what_makes_the_difference_is_left() {
        let publishes = |program: &Program| {
            let operations = program.steps.iter().flat_map(|step| &step.operations);
            operations.filter(|operation| matches!(operation, Operation::Publish(_))).count()
        };
        let program = generate::program(7, 60);
        assert!(publishes(&program) > 3, "seed 7 publishes");
        let shrunk = shrink(program, async |program: &Program| publishes(program) >= 3).await;
        assert_eq!((publishes(&shrunk), size(&shrunk)), (3, 3 + shrunk.steps.len()));
    }
}
