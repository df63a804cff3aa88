//! Who calls, and on whose behalf.

use client::SpiffeId;
use tonic::{Request, Status};
use uuid::Uuid;

use crate::Timestamp;

/// The workload of the operator, the command line.
pub(crate) const OPERATOR: &str = "chandlery";

/// What an end user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Buys, and sees and changes what is his own.
    Customer,
    /// Works in the shop, and sees and changes what is any user's.
    Staff,
}

/// An end user, proven by a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndUser {
    /// The identifier of the user.
    pub id: Uuid,
    /// What the user may do.
    pub role: Role,
    /// When the proof expires.
    pub expire_time: Timestamp,
}

/// Who sent a request. Every request that reaches a handler carries one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    workload: SpiffeId,
    user: Option<EndUser>,
}

impl Caller {
    /// The peer of the connection, and the end user for whom it calls.
    pub(crate) fn new(workload: SpiffeId, user: Option<EndUser>) -> Self {
        Self { workload, user }
    }

    /// The caller of a request.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>();
        caller.cloned().ok_or_else(|| Status::unauthenticated("the call has no proven caller"))
    }

    /// The peer of the connection, proven by its certificate.
    pub fn workload(&self) -> &SpiffeId {
        &self.workload
    }

    /// On whose behalf the request is. There is an end user only where the contract
    /// demands one.
    pub fn actor(&self) -> Actor {
        match self.user {
            None if self.workload.workload() == OPERATOR => Actor::Operator,
            None => Actor::Workload,
            Some(EndUser { id, role: Role::Customer, .. }) => Actor::Customer(id),
            Some(EndUser { id, role: Role::Staff, .. }) => Actor::Staff(id),
        }
    }

    /// The name under which requests are remembered: the end user if there is one,
    /// else the workload.
    pub fn principal(&self) -> String {
        match self.user {
            Some(EndUser { id, .. }) => format!("user:{id}"),
            None => self.workload.to_string(),
        }
    }
}

/// On whose behalf a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The operator, whom the contract lets go without an end user.
    Operator,
    /// Any other workload itself. It gets where the contract demands no end user.
    Workload,
    /// A customer.
    Customer(Uuid),
    /// Somebody of the staff.
    Staff(Uuid),
}

/// A request names a user for whom its actor may not act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("user {0} is somebody else; name yourself, or let the staff do it")]
pub struct NotOwner(pub Uuid);

impl Actor {
    /// Refuses an actor who may not see and change what belongs to this user. Nothing is
    /// looked up, so that nobody learns who exists.
    pub fn admit(self, user_id: Uuid) -> Result<(), NotOwner> {
        if self.may_act_for(user_id) { Ok(()) } else { Err(NotOwner(user_id)) }
    }

    /// Whether what belongs to this user is the actor's to see and change.
    fn may_act_for(self, user_id: Uuid) -> bool {
        match self {
            Self::Operator | Self::Staff(_) => true,
            Self::Workload => false,
            Self::Customer(own) => own == user_id,
        }
    }

    /// Whether the actor is this very user.
    pub fn is_user(self, user_id: Uuid) -> bool {
        match self {
            Self::Operator | Self::Workload => false,
            Self::Customer(own) | Self::Staff(own) => own == user_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_acts_for_himself_and_staff_for_anyone() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(Actor::Customer(own).may_act_for(own));
        assert!(!Actor::Customer(own).may_act_for(other));
        assert!(Actor::Staff(own).may_act_for(other) && !Actor::Staff(own).is_user(other));
        assert!(Actor::Operator.may_act_for(own) && !Actor::Operator.is_user(own));
        assert!(!Actor::Workload.may_act_for(own) && !Actor::Workload.is_user(own));
    }

    #[test]
    fn another_customer_is_refused_by_name() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(Actor::Customer(own).admit(own), Ok(()));
        assert_eq!(Actor::Customer(own).admit(other), Err(NotOwner(other)));
        assert_eq!(Actor::Staff(own).admit(other), Ok(()));
        assert_eq!(Actor::Operator.admit(other), Ok(()));
    }
}
