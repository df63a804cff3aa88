//! Users.

use std::mem;

use proto::user::v1 as pb;
use service_runtime::{
    Caller, Fields, Page, PageTokens, Reported, RequestKey, to_proto_role, to_proto_timestamp,
};
use tonic::Status;
use uuid::Uuid;

use crate::{
    password::Password,
    user::{Changes, Email, Profile, User},
};

/// What of a user can be changed.
const CHANGEABLE: [&str; 3] = ["email", "display_name", "role"];

/// A user to create, and with which password.
pub(in crate::grpc) fn create_user(
    caller: &Caller,
    request: pb::CreateUserRequest,
) -> Result<(RequestKey, Profile, Option<Password>), Status> {
    let mut fields = Fields::default();
    let profile = profile(&mut fields, request.user);
    let password = new_password(&mut fields, "password", request.password);
    // That there is a password makes another request; which one it is does not.
    let has_password = matches!(&password, Ok(Some(_)));
    let parameters = profile.clone().map(|profile| (profile, has_password));
    let key = fields.request_key(caller, "CreateUser", &request.request_id, &parameters);
    fields.accept(|| Ok((key?, profile?, password?)))
}

fn profile(fields: &mut Fields, user: Option<pb::User>) -> Result<Profile, Reported> {
    let user = fields.present("user", user)?;
    let email = email(fields, user.email);
    let display_name = display_name(fields, user.display_name);
    Ok(Profile { email: email?, display_name: display_name? })
}

fn new_password(
    fields: &mut Fields,
    field: &str,
    text: String,
) -> Result<Option<Password>, Reported> {
    let text = Some(text).filter(|text| !text.is_empty());
    text.map(|text| fields.check(field, Password::chosen(text))).transpose()
}

pub(in crate::grpc) fn get_user(request: &pb::GetUserRequest) -> Result<Uuid, Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    fields.accept(|| id)
}

pub(in crate::grpc) fn list_users(
    tokens: &PageTokens<'_>,
    request: &pb::ListUsersRequest,
) -> Result<Page, Status> {
    let mut fields = Fields::default();
    let page = tokens.page(&mut fields, request.page_size, 50, &request.page_token);
    fields.accept(|| page)
}

/// A change of a user.
#[derive(Debug)]
pub(in crate::grpc) struct UpdateRequest {
    pub(in crate::grpc) key: RequestKey,
    pub(in crate::grpc) id: Uuid,
    pub(in crate::grpc) etag: Option<String>,
    pub(in crate::grpc) changes: Changes,
    pub(in crate::grpc) new_password: Option<Password>,
    /// What the user shows to change his own password.
    pub(in crate::grpc) current_password: Option<Password>,
}

pub(in crate::grpc) fn update_user(
    caller: &Caller,
    mut request: pb::UpdateUserRequest,
) -> Result<UpdateRequest, Status> {
    let mut fields = Fields::default();
    let new_password =
        new_password(&mut fields, "new_password", mem::take(&mut request.new_password));
    let shown = mem::take(&mut request.current_password);
    let request_id = mem::take(&mut request.request_id);
    let update = update(&mut fields, request);
    let is_own = update.as_ref().is_ok_and(|(id, ..)| caller.actor().is_user(*id));
    let current_password = match &new_password {
        Ok(Some(_)) if is_own => fields.check("current_password", Password::shown(shown)).map(Some),
        _ => Ok(None),
    };
    // That there is a new password makes another request; which one it is does not.
    let changes_password = matches!(&new_password, Ok(Some(_)));
    let parameters = update.clone().map(|update| (update, changes_password));
    let key = fields.request_key(caller, "UpdateUser", &request_id, &parameters);
    fields.accept(|| {
        let (id, etag, changes) = update?;
        let (new_password, current_password) = (new_password?, current_password?);
        Ok(UpdateRequest { key: key?, id, etag, changes, new_password, current_password })
    })
}

fn update(
    fields: &mut Fields,
    request: pb::UpdateUserRequest,
) -> Result<(Uuid, Option<String>, Changes), Reported> {
    let mut user = fields.present("user", request.user)?;
    let id = fields.uuid("user.id", &user.id);
    let etag = fields.etag("user.etag", mem::take(&mut user.etag));
    // Nobody can be without a role, so that a whole user may come without one.
    let is_whole = request.update_mask.as_ref().is_some_and(|mask| mask.paths == ["*"]);
    let keeps_role = is_whole && user.role == 0;
    let names = fields.update_mask(request.update_mask, &CHANGEABLE, |name| match name {
        "email" => !user.email.is_empty(),
        "display_name" => !user.display_name.is_empty(),
        _ => user.role != 0,
    });
    let changes = names.and_then(|mut names| {
        names.retain(|name| !(keeps_role && *name == "role"));
        changes(fields, user, &names)
    });
    Ok((id?, etag?, changes?))
}

fn changes(fields: &mut Fields, user: pb::User, names: &[&str]) -> Result<Changes, Reported> {
    let named = |field| names.contains(&field);
    let email = named("email").then(|| email(fields, user.email)).transpose();
    let display_name =
        named("display_name").then(|| display_name(fields, user.display_name)).transpose();
    let role = named("role").then(|| fields.role("user.role", user.role)).transpose();
    Ok(Changes { email: email?, display_name: display_name?, role: role? })
}

fn email(fields: &mut Fields, text: String) -> Result<Email, Reported> {
    fields.check("user.email", Email::try_from(text))
}

fn display_name(fields: &mut Fields, text: String) -> Result<String, Reported> {
    fields.text("user.display_name", text, 1..=100)
}

pub(in crate::grpc) fn delete_user(
    request: pb::DeleteUserRequest,
) -> Result<(Uuid, Option<String>), Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    let etag = fields.etag("etag", request.etag);
    fields.accept(|| Ok((id?, etag?)))
}

impl From<User> for pb::User {
    fn from(user: User) -> Self {
        let etag = user.etag();
        let User { id, profile, role, revision: _, create_time, update_time, delete_time } = user;
        let Profile { email, display_name } = profile;
        Self {
            id: id.to_string(),
            email: email.as_str().to_owned(),
            display_name,
            etag,
            create_time: Some(to_proto_timestamp(create_time)),
            update_time: Some(to_proto_timestamp(update_time)),
            role: to_proto_role(role).into(),
            delete_time: delete_time.map(to_proto_timestamp),
        }
    }
}
