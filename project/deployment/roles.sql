-- The rights of two database roles. Run this as the owner of the tables, and afterwards
-- "tokenauth_audit harden", which takes back the rights to change the audit. Run both again after
-- a migration that adds tables.

-- The web workers, and staff who use commands.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO web;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO web;

-- The commands of the audit.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO upkeep;
