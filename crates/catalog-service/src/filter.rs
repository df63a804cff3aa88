//! Which products a list holds, as callers write it: the part of
//! <https://google.aip.dev/160> that the contract documents.

use std::{fmt, str::FromStr};

use crate::product::{InvalidSku, Sku};

/// What a product must meet, all of it, to be listed. Nothing at all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The terms that `AND` joins.
    pub terms: Vec<Term>,
}

/// One thing that a product must meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// Its category is this, but for case.
    Category(String),
    /// Its name has this in it, but for case.
    Name(String),
    /// Its SKU is this.
    Sku(Sku),
}

/// Text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be read from character {character} on: {problem}")]
pub struct InvalidFilter {
    character: usize,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("there is no such field; send category, name or sku")]
    Field,
    #[error("send {0} here")]
    Operator(&'static str),
    #[error("send a word of letters, digits and hyphens, or text in double quotes")]
    Value,
    #[error("the double quote has no other; add it at the end of the text")]
    Unclosed,
    #[error("a backslash stands before a double quote or another backslash; send two for one")]
    Escape,
    #[error("{0}")]
    Sku(InvalidSku),
    #[error("send AND between two terms")]
    Conjunction,
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let mut reader = Reader { text, rest: text.trim_start() };
        let mut terms = Vec::new();
        while !reader.rest.is_empty() {
            if !terms.is_empty() {
                reader.conjunction()?;
            }
            terms.push(reader.term()?);
        }
        Ok(Self { terms })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, term) in self.terms.iter().enumerate() {
            if place > 0 {
                formatter.write_str(" AND ")?;
            }
            let (field, text) = match term {
                Term::Category(text) => ("category =", text.as_str()),
                Term::Name(text) => ("name :", text.as_str()),
                Term::Sku(sku) => ("sku =", sku.as_str()),
            };
            write!(formatter, "{field} \"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#))?;
        }
        Ok(())
    }
}

/// Reads a filter from left to right. What is left never begins with white space.
struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn conjunction(&mut self) -> Result<(), InvalidFilter> {
        let before = self.rest;
        match self.word() {
            "AND" => Ok(()),
            _ => Err(self.refuse(before, Problem::Conjunction)),
        }
    }

    fn term(&mut self) -> Result<Term, InvalidFilter> {
        let before = self.rest;
        let (field, operator) = match self.word() {
            "category" => ("category", "="),
            "name" => ("name", ":"),
            "sku" => ("sku", "="),
            _ => return Err(self.refuse(before, Problem::Field)),
        };
        let Some(rest) = self.rest.strip_prefix(operator) else {
            return Err(self.refuse(self.rest, Problem::Operator(operator)));
        };
        self.rest = rest.trim_start();
        let before = self.rest;
        let text = self.value()?;
        match field {
            "category" => Ok(Term::Category(text)),
            "name" => Ok(Term::Name(text)),
            _ => Sku::try_from(text)
                .map(Term::Sku)
                .map_err(|invalid| self.refuse(before, Problem::Sku(invalid))),
        }
    }

    fn value(&mut self) -> Result<String, InvalidFilter> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let before = self.rest;
        match self.word() {
            "" => Err(self.refuse(before, Problem::Value)),
            word => Ok(word.to_owned()),
        }
    }

    fn quoted(&mut self) -> Result<String, InvalidFilter> {
        let mut value = String::new();
        let mut left = self.rest.char_indices().skip(1);
        while let Some((place, c)) = left.next() {
            match c {
                '"' => {
                    self.rest = self.rest[place + 1..].trim_start();
                    return Ok(value);
                }
                '\\' => match left.next() {
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    _ => return Err(self.refuse(&self.rest[place..], Problem::Escape)),
                },
                c => value.push(c),
            }
        }
        Err(self.refuse(self.rest, Problem::Unclosed))
    }

    /// What is left up to the end of a word; empty if no word begins here.
    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '-');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        word
    }

    /// Refuses the text where only `from` is left.
    fn refuse(&self, from: &str, problem: Problem) -> InvalidFilter {
        let read = &self.text[..self.text.len() - from.len()];
        InvalidFilter { character: read.chars().count() + 1, problem }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sku(text: &str) -> Term {
        Term::Sku(Sku::try_from(text.to_owned()).unwrap())
    }

    fn name(text: &str) -> Term {
        Term::Name(text.to_owned())
    }

    fn category(text: &str) -> Term {
        Term::Category(text.to_owned())
    }

    #[test]
    fn terms_are_joined_by_and_and_words_need_no_quotes() {
        for (text, terms) in [
            ("", vec![]),
            (" \t ", vec![]),
            (r#"category = "Rope""#, vec![category("Rope")]),
            ("category=Rope", vec![category("Rope")]),
            ("sku = ROPE-12 AND name:Ölzeug", vec![sku("ROPE-12"), name("Ölzeug")]),
            (r#"name : "a" AND name : "AND" "#, vec![name("a"), name("AND")]),
            (r#"name : AND AND name : """#, vec![name("AND"), name("")]),
            (r#"name : "3\" of \\ = : AND""#, vec![name(r#"3" of \ = : AND"#)]),
        ] {
            assert_eq!(text.parse(), Ok(Filter { terms }), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_where_it_begins() {
        for (text, character, problem) in [
            ("colour = red", 1, Problem::Field),
            ("é = red", 1, Problem::Field),
            ("NOT name : a", 1, Problem::Field),
            ("(name : a)", 1, Problem::Field),
            ("name : a AND ", 14, Problem::Field),
            ("category : Rope", 10, Problem::Operator("=")),
            ("name", 5, Problem::Operator(":")),
            ("name = Ö", 6, Problem::Operator(":")),
            ("category = ", 12, Problem::Value),
            ("name : *", 8, Problem::Value),
            ("name : Ö OR name : b", 10, Problem::Conjunction),
            ("name : a and name : b", 10, Problem::Conjunction),
            ("name : two words", 12, Problem::Conjunction),
            (r#"name : "a"#, 8, Problem::Unclosed),
            (r#"name : "a\""#, 8, Problem::Unclosed),
            (r#"name : "é\n""#, 10, Problem::Escape),
            ("sku = rope", 7, Problem::Sku(InvalidSku)),
        ] {
            let refused = text.parse::<Filter>();
            assert_eq!(refused, Err(InvalidFilter { character, problem }), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_where_and_what_to_send() {
        let refused = "category : Rope".parse::<Filter>().unwrap_err().to_string();
        assert_eq!(refused, "cannot be read from character 10 on: send = here");
    }

    fn term() -> impl Strategy<Value = Term> {
        prop_oneof![
            any::<String>().prop_map(Term::Category),
            any::<String>().prop_map(Term::Name),
            "[A-Z0-9-]{1,40}".prop_map(|text| sku(&text)),
        ]
    }

    proptest! {
        #[test]
        fn any_filter_can_be_printed_and_read_again(terms in prop::collection::vec(term(), 0..5)) {
            let filter = Filter { terms };
            prop_assert_eq!(filter.to_string().parse(), Ok(filter));
        }

        #[test]
        fn any_text_is_read_or_refused_within_it(text in any::<String>()) {
            if let Err(refused) = text.parse::<Filter>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&refused.character));
            }
        }

        #[test]
        fn what_looks_like_a_filter_is_read_or_refused_within_it(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "category", "name", "sku", "AND", "=", ":", " ", "\"", "\\", "Rope", "É", "-",
                ]),
                0..20,
            ),
        ) {
            let text = parts.concat();
            match text.parse::<Filter>() {
                Ok(filter) => prop_assert_eq!(filter.to_string().parse(), Ok(filter)),
                Err(refused) => {
                    prop_assert!((1..=text.chars().count() + 1).contains(&refused.character));
                }
            }
        }
    }
}
