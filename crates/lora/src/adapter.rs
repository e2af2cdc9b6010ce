//! An adapter as a value of its own: dropping it is unloading it.

use crate::{LoraConfig, Role, Trained, Update};
use halfbyte_autograd::{Param, Result};
use halfbyte_tensor::Device;
use std::collections::HashMap;

/// What was trained beside a base: an update for each of some of its weights.
///
/// It belongs to no model. A pass that names it in its [`Routing`](crate::Routing) uses it.
#[derive(Debug)]
pub struct Adapter {
    /// What it is called, for people.
    pub name: String,
    /// Its settings.
    pub config: LoraConfig,
    /// In the model's order.
    sites: Vec<Site>,
    /// Where in `sites` a path is.
    at: HashMap<String, usize>,
    /// Whether an output head that is tied to the embedding keeps the base's although this adapter has its own.
    pub(crate) unties_head: bool,
}

/// One weight of the base, and what happens to it.
///
/// A linear layer's matrix and an embedding's low-rank update are known by their module's path, a bias, a norm and a
/// copied embedding by their tensor's.
#[derive(Debug)]
struct Site {
    path: String,
    /// Of the weight that the update is a copy of; the factors of a low-rank update are matrices of their own.
    role: Role,
    update: Box<dyn Update>,
}

impl Adapter {
    /// An adapter of updates, each with the path and the role of what it changes.
    pub fn new(name: &str, config: LoraConfig, updates: Vec<(String, Role, Box<dyn Update>)>) -> Adapter {
        let site = |(path, role, update): (String, Role, Box<dyn Update>)| {
            let role = if update.copy().is_some() { role } else { Role::Linear };
            Site { path, role, update }
        };
        let sites: Vec<Site> = updates.into_iter().map(site).collect();
        let at = sites.iter().enumerate().map(|(i, it)| (it.path.clone(), i)).collect();
        Adapter { name: name.to_owned(), config, sites, at, unties_head: false }
    }

    /// What it does to the weight at `path`, if anything.
    pub fn update(&self, path: &str) -> Option<&dyn Update> {
        self.at.get(path).map(|i| self.sites[*i].update.as_ref())
    }

    /// All updates with their paths, in the model's order.
    pub fn updates(&self) -> impl Iterator<Item = (&str, &dyn Update)> {
        self.sites.iter().map(|it| (it.path.as_str(), it.update.as_ref()))
    }

    /// What of it trains, in the order of creation, which is the optimizer's.
    pub fn trained(&self) -> Vec<Trained> {
        let of_site = |site: &Site| -> Vec<Trained> {
            site.update.params().into_iter().map(|param| Trained { param, role: site.role }).collect()
        };
        let mut all: Vec<Trained> = self.sites.iter().flat_map(of_site).collect();
        all.sort_by_key(|it| it.param.id());
        all
    }

    /// All parameters that train, in the order in which they were made.
    pub fn params(&self) -> Vec<Param> {
        self.trained().into_iter().map(|it| it.param).collect()
    }

    /// Whether an output head that is tied to the embedding keeps the base's although this adapter has its own.
    pub fn unties_head(&self) -> bool {
        self.unties_head
    }

    /// Moves it to where the model computes.
    pub fn to_device(&self, device: &Device) -> Result<()> {
        self.params().iter().try_for_each(|it| it.to_device(device))
    }
}
