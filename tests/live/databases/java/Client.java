import java.io.PrintWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.sql.Statement;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.Pipeline;

/**
 * A client of databases and caches for the live tests: Client KIND PORT OUT
 *
 * Every operation is written to OUT as a line of JSON: what it was, when it began (CLOCK_MONOTONIC), how long it took by
 * this program's own clock, and with which code it failed.  It uses one connection, and the workload of all languages.
 */
public class Client {
    interface Run {
        void run() throws Exception;
    }

    private static PrintWriter out;
    private static boolean states;

    private static void timed(String op, Run run) {
        long start = System.nanoTime();
        String code = "";
        try {
            run.run();
        } catch (SQLException error) {
            code = states ? error.getSQLState() : Integer.toString(error.getErrorCode());
        } catch (Exception error) {
            code = error.getMessage().split(" ")[0];
        }
        long took = System.nanoTime() - start;
        out.printf("{\"op\": \"%s\", \"start_ns\": %d, \"took_ns\": %d, \"code\": \"%s\"}%n", op, start, took, code);
    }

    private static Run with(PreparedStatement statement, Object... values) {
        return () -> {
            for (int n = 0; n < values.length; n++) {
                statement.setObject(n + 1, values[n]);
            }
            statement.execute();
        };
    }

    private static void statements(Connection connection, String sleep) throws Exception {
        PreparedStatement select = connection.prepareStatement("SELECT note FROM orders WHERE id = ?");
        PreparedStatement insert = connection.prepareStatement("INSERT INTO customers (id, name) VALUES (?, ?)");
        PreparedStatement update = connection.prepareStatement("UPDATE orders SET note = ? WHERE id = ?");
        Statement plain = connection.createStatement();
        for (int n = 0; n < 30; n++) {
            timed("select", with(select, n));
        }
        for (int n = 0; n < 10; n++) {
            timed("insert", with(insert, n, "name"));
        }
        connection.setAutoCommit(false);
        for (int n = 0; n < 5; n++) {
            timed("update", with(update, "note", n));
            timed("commit", connection::commit);
        }
        connection.setAutoCommit(true);
        for (int n = 0; n < 3; n++) {
            timed("unique", with(insert, 1, "again"));
            timed("missing", () -> plain.execute("SELECT * FROM nowhere"));
            timed("syntax", () -> plain.execute("SELEC 1"));
            timed("sleep", () -> plain.execute(sleep));
        }
        timed("literal", () -> plain.execute("SELECT id FROM orders WHERE note = 'n7' AND id > 3"));
        timed("batch", () -> {
            for (int n = 20; n < 30; n++) {
                insert.setInt(1, n);
                insert.setString(2, "batch");
                insert.addBatch();
            }
            insert.executeBatch();
        });
        timed("delete", () -> plain.execute("DELETE FROM customers"));
    }

    private static void redis(int port) {
        try (Jedis jedis = new Jedis("127.0.0.1", port)) {
            for (int n = 0; n < 200; n++) {
                String key = "java:" + n % 7;
                String value = Integer.toString(n);
                timed("set", () -> jedis.set(key, value));
                timed("get", () -> jedis.get(key));
                timed("lpush", () -> jedis.lpush("list:" + key, value));
            }
            timed("wrong", () -> jedis.incr("list:java:1"));
            timed("pipeline", () -> {
                Pipeline pipeline = jedis.pipelined();
                for (int n = 0; n < 100; n++) {
                    pipeline.incr("counter");
                }
                pipeline.sync();
            });
        }
    }

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[1]);
        out = new PrintWriter(arguments[2], "UTF-8");
        Thread.sleep(300); // until it is watched
        switch (arguments[0]) {
            case "postgresql":
                states = true;
                String postgres = "jdbc:postgresql://127.0.0.1:" + port + "/postgres?user=postgres&sslmode=disable";
                try (Connection connection = DriverManager.getConnection(postgres)) {
                    statements(connection, "SELECT pg_sleep(0.02)");
                }
                break;
            case "mariadb":
                String mariadb = "jdbc:mariadb://127.0.0.1:" + port + "/shop?user=onlooker&password=onlooker";
                try (Connection connection = DriverManager.getConnection(mariadb)) {
                    statements(connection, "SELECT SLEEP(0.02)");
                }
                break;
            case "mariadb-prepared":
                String prepared = "jdbc:mariadb://127.0.0.1:" + port
                        + "/shop?user=onlooker&password=onlooker&useServerPrepStmts=true";
                try (Connection connection = DriverManager.getConnection(prepared)) {
                    statements(connection, "SELECT SLEEP(0.02)");
                }
                break;
            default:
                redis(port);
        }
        out.close();
    }
}
