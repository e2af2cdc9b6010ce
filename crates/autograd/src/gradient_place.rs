//! Where the gradient of a variable should lie, so that the op which gave it need not copy it.

use halfbyte_tensor::Tensor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an op would like the gradient of one of its outputs to be: a tensor with room beside its rows
/// ([`Tensor::scratch_with_room`]), or one beside the gradients of its other outputs ([`Tensor::scratch_side_by_side`]). A wish: who does not
/// know of it makes a tensor like any other.
#[derive(Clone, Debug, Default)]
pub struct GradientPlace {
    room: usize,
    among: Option<Among>,
}

/// One of several that lie beside each other.
#[derive(Clone, Debug)]
struct Among {
    all: Arc<Siblings>,
    number: usize,
    /// Whether who takes it has it from somebody who answers for it.
    passed_on: bool,
}

#[derive(Debug)]
struct Siblings {
    columns: Vec<usize>,
    room: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many ops said that they will write each.
    claims: Vec<usize>,
    /// What nobody has taken yet, once the first was.
    made: Option<Vec<Option<Tensor>>>,
}

impl State {
    /// Whether one of them is written by nobody who said so, or by several.
    fn stand_alone(&self) -> bool {
        self.claims.iter().any(|it| *it != 1)
    }
}

impl Siblings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GradientPlace {
    /// A tensor of its own with so much room.
    pub fn with_room(columns: usize) -> GradientPlace {
        GradientPlace { room: columns, among: None }
    }

    /// Places for gradients of so many columns each: beside each other, with so much room behind the last. If one of them is not [claimed]
    /// once, each has a tensor of its own, with room.
    ///
    /// [claimed]: crate::Var::claim_gradient_place
    pub fn side_by_side(columns: &[usize], room: usize) -> Vec<GradientPlace> {
        let state = State { claims: vec![0; columns.len()], made: None };
        let all = Arc::new(Siblings { columns: columns.to_vec(), room, state: Mutex::new(state) });
        let place = |number| {
            let among = Some(Among { all: all.clone(), number, passed_on: false });
            GradientPlace { room, among }
        };
        (0..columns.len()).map(place).collect()
    }

    /// The room of a tensor of its own.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Says that the gradient will be written to [`scratch`](Self::scratch).
    pub(crate) fn claim(&self) -> GradientPlace {
        if let Some(among) = self.among.as_ref().filter(|it| !it.passed_on) {
            among.all.state().claims[among.number] += 1;
        }
        self.clone()
    }

    /// The place for what comes before the gradient, where an op that claimed it goes over what lies there already. Whoever writes there
    /// need not say so.
    #[must_use]
    pub fn passed_on(&self) -> GradientPlace {
        let among = self.among.clone().map(|it| Among { passed_on: true, ..it });
        GradientPlace { among, ..self.clone() }
    }

    /// Whether a tensor in the place has memory of its own, and is beside no other.
    pub fn stands_alone(&self) -> bool {
        self.among.as_ref().is_none_or(|it| it.all.state().stand_alone())
    }

    /// A tensor of unspecified contents in the place, of the shape, the dtype and the device of `like`.
    pub fn scratch(&self, like: &Tensor) -> Tensor {
        self.scratch_of(like, like.shape())
    }

    /// [`scratch`](Self::scratch) of another shape than that of `like`.
    pub fn scratch_of(&self, like: &Tensor, shape: &[usize]) -> Tensor {
        let own = || like.scratch_with_room(shape, like.dtype(), self.room);
        let Some(Among { all, number, .. }) = &self.among else { return own() };
        let mut state = all.state();
        if state.stand_alone() {
            return own();
        }
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().product::<usize>() / cols.max(1);
        let made = state.made.get_or_insert_with(|| {
            let made = like.scratch_side_by_side((rows, &all.columns), like.dtype(), all.room);
            made.into_iter().map(Some).collect()
        });
        let fits = |it: &mut Tensor| (it.rows(), it.cols(), it.dtype()) == (rows, cols, like.dtype());
        match made[*number].take_if(fits).map(|it| it.reshape(shape)) {
            Some(Ok(place)) => place,
            _ => own(),
        }
    }
}
