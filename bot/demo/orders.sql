-- The demo's target: a shop's orders on a bad night. Run once by a superuser in an empty database.
-- All rows are made from numbers, so every run has the same: 120 customers, 40 products, 600 orders, about 1,500 items.

CREATE TABLE customers (
    id          integer PRIMARY KEY,
    name        text NOT NULL,
    email       text NOT NULL UNIQUE,
    city        text NOT NULL,
    since       date NOT NULL
);

CREATE TABLE products (
    sku         text PRIMARY KEY,
    title       text NOT NULL,
    price_cents integer NOT NULL CHECK (price_cents > 0),
    in_stock    integer NOT NULL CHECK (in_stock >= 0)
);

CREATE TABLE orders (
    id          integer PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customers,
    placed_at   timestamptz NOT NULL,
    status      text NOT NULL CHECK (status IN ('paid', 'shipped', 'delivered', 'refunded', 'stuck')),
    note        text NOT NULL DEFAULT ''
);

CREATE TABLE order_items (
    order_id    integer NOT NULL REFERENCES orders,
    line        integer NOT NULL,
    sku         text NOT NULL REFERENCES products,
    quantity    integer NOT NULL CHECK (quantity > 0),
    price_cents integer NOT NULL,
    PRIMARY KEY (order_id, line)
);

CREATE TABLE payments (
    id          integer PRIMARY KEY,
    order_id    integer NOT NULL REFERENCES orders,
    method      text NOT NULL,
    amount_cents integer NOT NULL,
    state       text NOT NULL CHECK (state IN ('captured', 'authorised', 'failed', 'refunded')),
    attempted_at timestamptz NOT NULL
);

-- What an emergency never needs: no level may read it.
CREATE TABLE payment_cards (
    customer_id integer PRIMARY KEY REFERENCES customers,
    card_token  text NOT NULL,
    expires     date NOT NULL
);

INSERT INTO customers
SELECT n,
       (ARRAY['Ada','Ben','Chloe','Dev','Elif','Femi','Grace','Hugo','Ines','Jonas','Kira','Liam'])[1 + n % 12] || ' ' ||
       (ARRAY['Okafor','Lindqvist','Moreau','Tanaka','Silva','Novak','Haddad','Brandt','Ferrari','Walsh'])[1 + n / 12],
       'customer' || n || '@example.com',
       (ARRAY['Lisbon','Hamburg','Lyon','Dublin','Turin','Gdansk','Malmo'])[1 + n % 7],
       date '2021-03-01' + n * 11
FROM generate_series(1, 119) AS n
UNION ALL
SELECT 120, 'Zoe Quist', 'customer120@example.com', 'Malmo', date '2024-12-24';

INSERT INTO products
SELECT 'SKU-' || to_char(n, 'FM000'),
       (ARRAY['Kettle','Lamp','Desk','Chair','Rug','Shelf','Mirror','Clock'])[1 + n % 8] || ' ' ||
       (ARRAY['Nord','Alba','Fjord','Brisa','Terra'])[1 + n / 8 % 5],
       900 + n * 137 % 9000,
       n * 29 % 180
FROM generate_series(1, 40) AS n;

-- Checkout broke at order 561: since then each order is stuck, its payment authorised once or twice and never captured.
INSERT INTO orders
SELECT n,
       1 + n * 37 % 120,
       timestamptz '2026-01-05 08:00+00' + n * interval '17 minutes',
       CASE WHEN n > 560 THEN 'stuck'
            WHEN n % 41 = 0 THEN 'refunded'
            WHEN n > 520 THEN 'paid'
            WHEN n > 440 THEN 'shipped'
            ELSE 'delivered' END,
       CASE WHEN n > 560 THEN 'capture timed out' ELSE '' END
FROM generate_series(1, 600) AS n;

INSERT INTO order_items
SELECT o.id, line, p.sku, 1 + (o.id + line) % 3, p.price_cents
FROM orders AS o
CROSS JOIN LATERAL generate_series(1, 1 + o.id % 4) AS line
JOIN products AS p ON p.sku = 'SKU-' || to_char(1 + (o.id * 7 + line * 13) % 40, 'FM000');

INSERT INTO payments
SELECT row_number() OVER (ORDER BY o.id, attempt),
       o.id,
       (ARRAY['card','card','card','invoice','wallet'])[1 + o.id % 5],
       (SELECT sum(i.quantity * i.price_cents) FROM order_items AS i WHERE i.order_id = o.id),
       CASE o.status WHEN 'stuck' THEN 'authorised' WHEN 'refunded' THEN 'refunded' ELSE 'captured' END,
       o.placed_at + attempt * interval '20 seconds'
FROM orders AS o
CROSS JOIN LATERAL generate_series(1, CASE WHEN o.status = 'stuck' AND o.id % 3 = 0 THEN 2 ELSE 1 END) AS attempt;

INSERT INTO payment_cards
SELECT id, 'tok_' || md5('card' || id), date '2027-01-01' + id * 9 FROM customers;

CREATE VIEW stuck_orders AS
SELECT o.id, c.name, c.email, o.placed_at, count(p.id) AS authorisations, max(p.amount_cents) AS amount_cents
FROM orders AS o
JOIN customers AS c ON c.id = o.customer_id
LEFT JOIN payments AS p ON p.order_id = o.id AND p.state = 'authorised'
WHERE o.status = 'stuck'
GROUP BY o.id, c.name, c.email, o.placed_at
ORDER BY o.id;

-- The group roles whose rights a level lends. They are the server's, not the database's: another database may have
-- made them already.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['bg_orders_ro', 'bg_orders_rw', 'bg_orders_rehearsal'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role_name);
        IF role_name <> 'bg_orders_rehearsal' THEN
            EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', role_name);
        END IF;
    END LOOP;
    -- By default everybody may connect to every database and make temporary tables there.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT SELECT ON customers, products, orders, order_items, payments, stuck_orders TO bg_orders_ro, bg_orders_rw;
GRANT INSERT, UPDATE ON orders, order_items, payments TO bg_orders_rw;
GRANT DELETE ON order_items, payments TO bg_orders_rw;

-- What a drill opens: a schema of its own, in which nothing is real.
CREATE SCHEMA rehearsal;
CREATE TABLE rehearsal.orders (id integer PRIMARY KEY, status text NOT NULL);
INSERT INTO rehearsal.orders SELECT n, 'made up' FROM generate_series(1, 3) AS n;
GRANT USAGE ON SCHEMA rehearsal TO bg_orders_rehearsal;
GRANT SELECT ON rehearsal.orders TO bg_orders_rehearsal;
